package cluster

import (
	"fmt"
	"os"
	"testing"
)

// An answer to a read says nothing of writes, and one failure is not the end.
func TestReadsDoNotTellOfWrites(t *testing.T) {
	h, lost, refusal, keys := health{failed: make(map[string]bool), proven: true}, os.ErrDeadlineExceeded, redisSays("READONLY"), []string{"a"}
	for range 100 { // a busy machine
		for range 4 {
			h.record(lost, true, keys)
			h.record(nil, false, nil)
		}
		if h.closed {
			t.Fatal("four answers that did not come are the end")
		}
		h.record(nil, true, nil)
	}
	for range 5 {
		h.record(lost, true, keys)
		h.record(nil, false, nil)
	}
	h.record(nil, true, nil) // which was under way
	if !h.closed || h.state() != down {
		t.Fatal("five of them in a row are not")
	}
	clear(h.failed) // a probe is sent
	h.record(refusal, true, keys)
	h.recordProbe(nil, nil)
	if !h.closed {
		t.Error("a probe that was sent before a failure has healed it")
	}
	clear(h.failed)
	h.recordProbe(nil, nil)
	if h.closed || len(h.failed) > 0 || h.state() != up {
		t.Errorf("behind a probe: %+v", h)
	}
	for i := range 1000 {
		h.record(refusal, true, []string{fmt.Sprint(i)})
	}
	if len(h.failed) > maxFailed {
		t.Errorf("%d keys are to be probed", len(h.failed))
	}
}

// A part of a cluster hangs, and all other writes succeed.
func TestProbesThatAreNotAnsweredAreTheEndOfSharing(t *testing.T) {
	h, lost, keys := health{failed: make(map[string]bool), proven: true}, os.ErrDeadlineExceeded, []string{"a"}
	for i := range maxMissedProbes {
		if h.closed {
			t.Fatalf("%d probes are the end", i)
		}
		clear(h.failed)
		h.recordProbe(lost, keys)
		h.record(nil, true, nil)
	}
	if h.record(nil, true, nil); !h.closed || h.state() != down {
		t.Fatalf("%d probes are not the end", maxMissedProbes)
	}
	clear(h.failed)
	h.recordProbe(nil, nil)
	if h.closed {
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
		"{x}:limit:gateways": "imapgate:limit:probe:{x}", "imapgate:ban:probe:{all}": "imapgate:ban:probe:{all}", "a{}b": "imapgate:limit:probe:{a{}b}",
	} {
		if got := k.probe(of); got != want {
			t.Errorf("of %s: %s, want %s", of, got, want)
		}
	}
}
