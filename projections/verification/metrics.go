package verification

import (
	"github.com/prometheus/client_golang/prometheus"

	"keyledger/index"
)

// collector publishes an index. Nothing is counted for it on the way of a
// verification but the unknown keys: outcomes of known keys are what the
// accountant flushes.
type collector struct{ index *index.Index }

var (
	keysMetric     = prometheus.NewDesc("keyledger_index_keys", "Keys in the verification index.", nil, nil)
	positionMetric = prometheus.NewDesc("keyledger_index_position", "Lifecycle position that the verification index has applied.", nil, nil)
	readyMetric    = prometheus.NewDesc("keyledger_index_ready", "1 while the verification index gives verdicts.", nil, nil)
	bytesMetric    = prometheus.NewDesc("keyledger_index_bytes", "Memory of the verification index, by what it holds.", []string{"part"}, nil)
	loadMetric     = prometheus.NewDesc("keyledger_index_load_seconds", "Duration of the last load of the snapshot.", nil, nil)
	loadedMetric   = prometheus.NewDesc("keyledger_index_loaded_keys", "Keys in the last snapshot that was loaded.", nil, nil)
	shadowedMetric = prometheus.NewDesc("keyledger_index_shadowed_keys", "Keys that are not found, since an older key has the same digest.", nil, nil)
	unknownMetric  = prometheus.NewDesc("keyledger_unknown_keys_total", "Verifications of keys that are not in the ledger.", nil, nil)
)

func (*collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{keysMetric, positionMetric, readyMetric, bytesMetric, loadMetric, loadedMetric, shadowedMetric, unknownMetric} {
		to <- d
	}
}

func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	x := c.index
	gauge(keysMetric, float64(x.Len()))
	gauge(positionMetric, float64(x.Position()))
	ready := 0.0
	if x.Ready() {
		ready = 1
	}
	gauge(readyMetric, ready)
	m := x.Memory()
	gauge(bytesMetric, float64(m.Entries), "entries")
	gauge(bytesMetric, float64(m.Tables), "tables")
	gauge(bytesMetric, float64(m.Names), "names")
	gauge(bytesMetric, float64(m.Profiles), "profiles")
	gauge(bytesMetric, float64(m.Tallies), "tallies")
	gauge(bytesMetric, float64(m.Quotas), "quotas")
	gauge(shadowedMetric, float64(x.Shadowed()))
	took, keys := x.Loaded()
	gauge(loadMetric, took.Seconds())
	gauge(loadedMetric, float64(keys))
	to <- prometheus.MustNewConstMetric(unknownMetric, prometheus.CounterValue, float64(x.Unknown()))
}
