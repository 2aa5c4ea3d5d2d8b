package prove_test

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"keyledger/domain"
)

const (
	clients    = 4
	slots      = 2 // keys of a history
	operations = 8 // of each client
	// bothersEvery is how many histories are made until a node's connections are slow or
	// quick again, so that its index is behind in some and not in others.
	bothersEvery = 8
)

// step is one thing that a client did.
type step struct {
	kind   stepKind
	slot   int    // of the key; lists have none
	node   int    // that was asked
	strict bool   // a revoke that says whether it was the first (BunShip's)
	fresh  bool   // a verification that named the highest position that anybody was told
	result result // valid unless the kind says otherwise
	lost   bool   // no answer came: it happened at any time since, or never

	client    int
	call, ret int64
}

type stepKind int

func (k stepKind) String() string { return [...]string{"create", "revoke", "list", "get", "verify"}[k] }

const (
	doCreate stepKind = iota
	doRevoke
	doList
	doGet
	doVerify
)

// level is what is known of a key. A key goes through them upwards.
type level uint8

const (
	absent level = iota
	active
	ended
)

// result is what a client was told.
type result struct {
	levels   [slots]level // of a list: all; otherwise that of the slot
	again    bool         // of a strict revoke: it was revoked before
	position domain.Position
}

func (s step) String() string {
	return fmt.Sprintf("%d to %d µs: client %d at node %d: %s key %d (strict %t, fresh %t, lost %t): %v, again %t, position %d",
		s.call/1000, s.ret/1000, s.client, s.node, s.kind, s.slot, s.strict, s.fresh, s.lost, s.result.levels, s.result.again, s.result.position)
}

// history is what some clients did to a few keys at once.
type history struct {
	*site
	name string

	mu     sync.Mutex
	ids    [slots]domain.KeyID
	plain  [slots]string
	begun  [slots]bool
	newest domain.Token // the highest position that anybody was told
	steps  []step
	odd    []string
}

// record lets the clients loose.
func (s *site) record(name string) *history {
	h := &history{site: s, name: name}
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for range operations {
				h.act(client)
			}
		})
	}
	all.Wait()
	return h
}

// act does one thing of what is possible.
func (h *history) act(client int) {
	s := step{client: client, slot: rand.IntN(slots), node: rand.IntN(len(h.nodes))}
	h.mu.Lock()
	exists := h.plain[s.slot] != ""
	switch draw := rand.IntN(10); {
	case !h.begun[s.slot]:
		s.kind, h.begun[s.slot] = doCreate, true
	case !exists || draw == 0:
		s.kind = doList
	case draw == 1:
		s.kind = doGet
	case draw == 2:
		s.kind, s.strict = doRevoke, rand.IntN(2) == 0
	default:
		s.kind, s.fresh = doVerify, rand.IntN(2) == 0
	}
	id, plain, minimum := h.ids[s.slot], h.plain[s.slot], h.newest
	h.mu.Unlock()
	s.call = int64(time.Since(h.clock))
	ok := h.do(&s, id, plain, minimum)
	s.ret = int64(time.Since(h.clock))
	if !ok {
		if s.kind != doCreate && s.kind != doRevoke {
			return // it told nothing
		}
		s.lost, s.ret = true, math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.steps = append(h.steps, s)
}

func (h *history) told(token string) {
	if t, err := domain.ParseToken(token); err == nil && t.Position > h.newest.Position {
		h.newest = t
	}
}

// do asks, and says whether an answer came.
func (h *history) do(s *step, id domain.KeyID, plain string, minimum domain.Token) bool {
	n, ctx := h.nodes[s.node], h.t.Context()
	name := h.name + "-" + strconv.Itoa(s.slot)
	switch s.kind {
	case doCreate:
		status, header, body := h.call(ctx, http.MethodPost, keysURL(n, bullseye), `{"name":"`+name+`"}`, h.admin())
		var made struct {
			Key   struct{ ID string } `json:"apiKey"`
			Plain string              `json:"plainKey"`
		}
		if status != http.StatusCreated || json.Unmarshal(body, &made) != nil {
			return h.excused(status, body)
		}
		created, err := domain.ParseKeyID(made.Key.ID)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ids[s.slot], h.plain[s.slot] = created, made.Plain
		h.told(header.Get("X-Keyledger-Position"))
		return err == nil
	case doRevoke:
		d := bullseye
		if s.strict {
			d = bunship
		}
		status, header, body := h.call(ctx, http.MethodDelete, keysURL(n, d)+"/"+id.String(), "", h.admin())
		s.result.again = status == http.StatusNotFound
		if status != http.StatusOK && (!s.strict || status != http.StatusNotFound) {
			return h.excused(status, body)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.told(header.Get("X-Keyledger-Position"))
		return true
	case doList:
		status, _, body := h.call(ctx, http.MethodGet, keysURL(n, bullseye)+"?limit=100", "", h.admin())
		var list struct {
			Keys []struct{ Name, Status string } `json:"apiKeys"`
		}
		if status != http.StatusOK || json.Unmarshal(body, &list) != nil {
			return h.excused(status, body)
		}
		for _, key := range list.Keys {
			for slot := range slots {
				if key.Name == h.name+"-"+strconv.Itoa(slot) {
					s.result.levels[slot] = map[string]level{"active": active, "revoked": ended}[key.Status]
				}
			}
		}
		return true
	case doGet:
		status, _, body := h.call(ctx, http.MethodGet, keysURL(n, bunship)+"/"+id.String(), "", h.admin())
		var got struct{ Data struct{ IsActive bool } }
		switch {
		case status == http.StatusNotFound:
			s.result.levels[s.slot] = absent
		case status != http.StatusOK || json.Unmarshal(body, &got) != nil:
			return h.excused(status, body)
		case got.Data.IsActive:
			s.result.levels[s.slot] = active
		default:
			s.result.levels[s.slot] = ended
		}
		return true
	case doVerify:
	}
	header := http.Header{}
	if s.fresh {
		header.Set("X-Keyledger-Min-Position", minimum.String())
	}
	status, _, body := h.call(ctx, http.MethodPost, n.url+"/api/v1/keys/verify", `{"key":"`+plain+`"}`, header)
	var verdict struct {
		Code     string
		Position domain.Position
	}
	if status != http.StatusOK || json.Unmarshal(body, &verdict) != nil {
		return h.excused(status, body)
	}
	var known bool
	s.result.levels[s.slot], known = map[string]level{"NOT_FOUND": absent, "VALID": active, "REVOKED": ended}[verdict.Code]
	s.result.position = verdict.Position
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told(domain.Token{Epoch: h.newest.Epoch, Lane: domain.Lifecycle, Position: verdict.Position}.String())
	return known
}

// excused is always false; it notes answers that nothing excuses.
func (h *history) excused(status int, body []byte) bool {
	if status != 0 && status != http.StatusServiceUnavailable && status != http.StatusConflict {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.odd = append(h.odd, fmt.Sprintf("%d: %s", status, body))
	}
	return false
}

// guarantee is what is promised of some of a history's steps.
type guarantee struct {
	name  string
	model porcupine.Model
	// parts gives the histories that must each fit the model.
	parts func([]step) [][]porcupine.Operation
}

func operation(s step) porcupine.Operation {
	return porcupine.Operation{ClientId: s.client, Input: s, Output: s.result, Call: s.call, Return: s.ret}
}

// guarantees are all of them.
var guarantees = []guarantee{
	{
		name: "writes and lists are linearizable",
		// All keys at once: a list shows one moment.
		model: porcupine.Model{
			Init: func() any { return [slots]level{} },
			Step: func(state, input, output any) (bool, any) {
				levels, s, r := state.([slots]level), input.(step), output.(result)
				at := levels[s.slot]
				switch s.kind {
				case doCreate:
					levels[s.slot] = active
					return at == absent, levels
				case doRevoke:
					levels[s.slot] = ended
					return at != absent && (s.lost || !s.strict || r.again == (at == ended)), levels
				case doList:
					return r.levels == levels, levels
				default:
					return r.levels[s.slot] == at, levels
				}
			},
		},
		parts: func(steps []step) [][]porcupine.Operation {
			var part []porcupine.Operation
			for _, s := range steps {
				if s.kind != doVerify {
					part = append(part, operation(s))
				}
			}
			return [][]porcupine.Operation{part}
		},
	},
	{
		name: "a key is never valid after a revoke has returned",
		// A revoke is two things: it begins when it is called, from when the key may be
		// refused here and accepted there, and it holds before it returns.
		model: porcupine.Model{
			Init: func() any { return narrowing{} },
			Step: func(state, input, output any) (bool, any) {
				n, s, r := state.(narrowing), input.(step), output.(result)
				switch s.kind {
				case doCreate:
					n.created = true
				case doRevoke:
					if s.lost {
						n.begun = true
					} else {
						n.holds = true
					}
				default:
					switch r.levels[s.slot] {
					case active:
						return n.created && !n.holds, n
					case ended:
						return n.begun, n
					case absent:
					}
				}
				return true, n
			},
		},
		parts: func(steps []step) (parts [][]porcupine.Operation) {
			for slot := range slots {
				var part []porcupine.Operation
				for _, s := range steps {
					switch {
					case s.slot != slot || s.kind == doList || s.kind == doGet:
						continue
					case s.kind == doCreate || s.kind == doRevoke:
						begins := s
						begins.lost, begins.ret = true, s.call
						part = append(part, operation(begins))
					}
					if !s.lost && s.kind != doCreate {
						part = append(part, operation(s))
					}
				}
				parts = append(parts, part)
			}
			return parts
		},
	},
	{
		name: "what a node says of a key only goes on",
		model: porcupine.Model{
			Init: func() any { return progress{} },
			Step: func(state, input, output any) (bool, any) {
				p, s, r := state.(progress), input.(step), output.(result)
				next := progress{r.levels[s.slot], r.position}
				return next.level >= p.level && next.position >= p.position, next
			},
		},
		parts: func(steps []step) (parts [][]porcupine.Operation) {
			byNode := map[[2]int][]porcupine.Operation{}
			for _, s := range steps {
				if s.kind == doVerify {
					at := [2]int{s.node, s.slot}
					byNode[at] = append(byNode[at], operation(s))
				}
			}
			for _, part := range byNode {
				parts = append(parts, part)
			}
			return parts
		},
	},
	{
		name: "verification with the newest position is linearizable",
		model: porcupine.Model{
			Init: func() any { return absent },
			Step: func(state, input, output any) (bool, any) {
				at, s, r := state.(level), input.(step), output.(result)
				switch s.kind {
				case doCreate:
					return at == absent, active
				case doRevoke:
					return at != absent, ended
				default:
					return r.levels[s.slot] == at, at
				}
			},
		},
		parts: func(steps []step) (parts [][]porcupine.Operation) {
			for slot := range slots {
				var part []porcupine.Operation
				for _, s := range steps {
					if s.slot == slot && (s.kind == doCreate || s.kind == doRevoke || s.kind == doVerify && s.fresh) {
						part = append(part, operation(s))
					}
				}
				parts = append(parts, part)
			}
			return parts
		},
	},
}

type narrowing struct{ created, begun, holds bool }

type progress struct {
	level    level
	position domain.Position
}

// holds says whether a history keeps a guarantee.
func (g guarantee) holds(steps []step) bool {
	for _, part := range g.parts(steps) {
		if porcupine.CheckOperationsTimeout(g.model, part, time.Minute) != porcupine.Ok {
			return false
		}
	}
	return true
}

// lie makes a history say what would break a guarantee; false when there is nothing
// in it that could.
type lie struct {
	name      string
	guarantee int
	tell      func([]step) bool
}

var lies = []lie{
	{"a list lacks a key that was made", 0, func(steps []step) bool {
		return alter(steps, doCreate, func(before step, s *step) bool {
			return change(&s.result.levels[before.slot], absent, s.kind == doList)
		})
	}},
	{"a list shows a key as it was before its revocation", 0, func(steps []step) bool {
		return alter(steps, doRevoke, func(before step, s *step) bool {
			return change(&s.result.levels[before.slot], active, s.kind == doList || s.kind == doGet && s.slot == before.slot)
		})
	}},
	{"two revokes are both the first", 0, func(steps []step) bool {
		return alter(steps, doRevoke, func(before step, s *step) bool {
			if s.kind == doRevoke && s.slot == before.slot && s.strict && s.result.again {
				s.result.again = false
				return true
			}
			return false
		})
	}},
	{"a key is valid after its revocation", 1, func(steps []step) bool {
		return alter(steps, doRevoke, func(before step, s *step) bool {
			return change(&s.result.levels[before.slot], active, s.kind == doVerify && s.slot == before.slot)
		})
	}},
	{"a node takes a revocation back", 2, func(steps []step) bool {
		return alter(steps, doVerify, func(before step, s *step) bool {
			return before.result.levels[before.slot] == ended &&
				change(&s.result.levels[before.slot], active, s.kind == doVerify && s.slot == before.slot && s.node == before.node)
		})
	}},
	{"a node's position runs backwards", 2, func(steps []step) bool {
		return alter(steps, doVerify, func(before step, s *step) bool {
			if s.kind == doVerify && s.slot == before.slot && s.node == before.node && before.result.position > 1 {
				s.result.position = before.result.position - 1
				return true
			}
			return false
		})
	}},
	{"a fresh verification does not know a key that was made", 3, func(steps []step) bool {
		return alter(steps, doCreate, func(before step, s *step) bool {
			return change(&s.result.levels[before.slot], absent, s.kind == doVerify && s.fresh && s.slot == before.slot)
		})
	}},
	{"a fresh verification accepts what another has refused", 3, func(steps []step) bool {
		return alter(steps, doVerify, func(before step, s *step) bool {
			return before.fresh && before.result.levels[before.slot] == ended &&
				change(&s.result.levels[before.slot], active, s.kind == doVerify && s.fresh && s.slot == before.slot)
		})
	}},
}

// alter looks for a step of a kind and one that began after it had returned, and lets
// tell alter that one.
func alter(steps []step, kind stepKind, tell func(before step, s *step) bool) bool {
	for _, before := range steps {
		if before.kind != kind || before.lost {
			continue
		}
		for i := range steps {
			if s := &steps[i]; s.call > before.ret && !s.lost && tell(before, s) {
				return true
			}
		}
	}
	return false
}

func change(at *level, to level, wanted bool) bool {
	if !wanted || *at == to {
		return false
	}
	*at = to
	return true
}

// TestHistoriesKeepWhatIsPromised has porcupine search for an order of what several
// clients saw at two nodes at once that explains it.
func TestHistoriesKeepWhatIsPromised(t *testing.T) {
	t.Parallel()
	rounds := 60
	if n, ok := soak(t); ok {
		rounds = 10 * n
	}
	s := startSite(t, size{nodes: 2, brokers: 1})
	told, found := make([]int, len(lies)), make([]int, len(lies))
	steps := 0
	for round := range rounds {
		if round%bothersEvery == 0 {
			for i, n := range s.nodes {
				n.database.heal()
				n.nats.each((*link).heal)
				if which := round / bothersEvery % 4; which == 2*i || which == 3 {
					n.database.delay(8)
					n.nats.each(func(l *link) { l.delay(20) })
				}
			}
		}
		h := s.record("history " + strconv.Itoa(round))
		steps += len(h.steps)
		for _, text := range h.odd {
			t.Errorf("history %d: an answer that nothing excuses: %s", round, text)
		}
		for _, g := range guarantees {
			if !g.holds(h.steps) {
				t.Errorf("history %d: it is not so that %s:", round, g.name)
				for _, s := range h.steps {
					t.Log(s)
				}
			}
		}
		for i, l := range lies {
			altered := append([]step(nil), h.steps...)
			if !l.tell(altered) {
				continue
			}
			told[i]++
			if !guarantees[l.guarantee].holds(altered) {
				found[i]++
			}
		}
		if t.Failed() {
			break
		}
	}
	for i, l := range lies {
		if told[i] == 0 || found[i] != told[i] {
			t.Errorf("%q was told %d times and found %d times", l.name, told[i], found[i])
		}
	}
	t.Logf("%d histories with %d steps keep what is promised; lies found in them: %d", rounds, steps, found)
}

// soak is how often things are done where KEYLEDGER_SOAK says so.
func soak(t *testing.T) (int, bool) {
	t.Helper()
	text, ok := os.LookupEnv("KEYLEDGER_SOAK")
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("KEYLEDGER_SOAK is no number: %v", err)
	}
	return n, true
}
