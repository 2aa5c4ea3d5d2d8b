package shares

import "github.com/prometheus/client_golang/prometheus"

// metrics publishes the shares of a node, as they are when somebody looks.
type metrics struct{ shares *Shares }

var (
	nodesMetric   = prometheus.NewDesc("keyledger_share_nodes", "Nodes that keep limits together as this node knows them, itself included; 0: it does not know yet.", nil, nil)
	reachedMetric = prometheus.NewDesc("keyledger_share_nodes_reached", "Those of them that were heard of within the minute that limits are remembered.", nil, nil)
	roundsMetric  = prometheus.NewDesc("keyledger_share_rounds_total", "Rounds in which this node told the others what it accepted: answered by all (agreed), or not in time (given_up).", []string{"result"}, nil)
)

func (m metrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodesMetric, reachedMetric, roundsMetric} {
		to <- d
	}
}

func (m metrics) Collect(to chan<- prometheus.Metric) {
	s := m.shares
	s.mu.Lock()
	nodes, reached, agreed, givenUp := 0, s.reached, s.agreed, s.givenUp
	if s.known {
		nodes = 1 + len(s.peers)
	}
	s.mu.Unlock()
	to <- prometheus.MustNewConstMetric(nodesMetric, prometheus.GaugeValue, float64(nodes))
	to <- prometheus.MustNewConstMetric(reachedMetric, prometheus.GaugeValue, float64(reached))
	to <- prometheus.MustNewConstMetric(roundsMetric, prometheus.CounterValue, float64(agreed), "agreed")
	to <- prometheus.MustNewConstMetric(roundsMetric, prometheus.CounterValue, float64(givenUp), "given_up")
}
