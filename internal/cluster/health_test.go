package cluster

import (
	"fmt"
	"os"
	"testing"
)

// An answer to a read says nothing of writes, and one failure is not the end.
func TestReadsDoNotTellOfWrites(t *testing.T) {
	h := health{failed: make(map[string]uint64), proven: true}
	lost := (*outage)(nil).add("a", os.ErrDeadlineExceeded)
	refusal := (*outage)(nil).add("a", redisSays("READONLY"))
	for range 100 { // a busy machine
		for range 4 {
			h.recordOutage(lost, true, lost.keys)
			h.recordAnswer(false)
		}
		if h.down() {
			t.Fatal("four answers that did not come are the end")
		}
		h.recordAnswer(true)
	}
	for range 5 {
		h.recordOutage(lost, true, lost.keys)
		h.recordAnswer(false)
	}
	h.recordAnswer(true) // which was under way
	if !h.closed() || h.state() != down {
		t.Fatal("five of them in a row are not")
	}
	probed := map[string]uint64{"a": h.failed["a"]}
	h.recordOutage(refusal, true, []string{"a"})
	h.recordProbe(nil, probed)
	if !h.closed() {
		t.Error("a probe that was sent before a failure has healed it")
	}
	h.recordProbe(nil, map[string]uint64{"a": h.failed["a"]})
	if h.down() || len(h.failed) > 0 || h.state() != up {
		t.Errorf("behind a probe: %+v", h)
	}
	for i := range 1000 {
		h.recordOutage(refusal, true, []string{fmt.Sprint(i)})
	}
	if len(h.failed) > maxFailed {
		t.Errorf("%d keys are to be probed", len(h.failed))
	}
}

// A part of a cluster hangs, and all other writes succeed.
func TestProbesThatAreNotAnsweredAreTheEndOfSharing(t *testing.T) {
	h := health{failed: make(map[string]uint64), proven: true}
	lost := (*outage)(nil).add("a", os.ErrDeadlineExceeded)
	for i := range maxMissedProbes {
		if h.down() {
			t.Fatalf("%d probes are the end", i)
		}
		h.recordProbe(lost, nil)
		h.recordAnswer(true)
	}
	if h.recordAnswer(true); !h.down() || h.state() != down {
		t.Fatalf("%d probes are not the end", maxMissedProbes)
	}
	h.recordProbe(nil, map[string]uint64{"a": h.failed["a"]})
	if h.down() {
		t.Fatal("a probe that is answered does not begin it again")
	}
}

// redisSays is an error that Redis answers with.
type redisSays string

func (e redisSays) Error() string { return string(e) }
func (redisSays) RedisError()     {}

func TestAProbeIsWhereItsKeyIs(t *testing.T) {
	k := keys{"imapgate:"}
	for of, want := range map[string]string{
		k.gateways():         "imapgate:limit:probe:{imapgate:limit:gateways}",
		k.bans()[0]:          "imapgate:ban:probe:{all}",
		"{x}:limit:gateways": "imapgate:limit:probe:{x}", "a{}b": "imapgate:limit:probe:{a{}b}",
	} {
		if got := k.probe(of); got != want {
			t.Errorf("of %s: %s, want %s", of, got, want)
		}
	}
}
