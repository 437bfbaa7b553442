package cluster

import (
	"fmt"
	"os"
	"testing"
)

// A successful read proves nothing about writes, and a single failure does not end sharing.
func TestReadsDoNotShowWhetherWritesWork(t *testing.T) {
	h, timeout, refusal, keys := health{failed: make(map[string]bool), proven: true}, os.ErrDeadlineExceeded, redisError("READONLY"), []string{"a"}
	for range 100 { // four timeouts in a row, as on a busy machine
		for range 4 {
			h.record(timeout, true, keys)
			h.record(nil, false, nil)
		}
		if h.closed {
			t.Fatal("four timeouts in a row end sharing")
		}
		h.record(nil, true, nil)
	}
	for range 5 {
		h.record(timeout, true, keys)
		h.record(nil, false, nil)
	}
	h.record(nil, true, nil) // a write that was sent before
	if !h.closed || h.state() != down {
		t.Fatal("five timeouts in a row do not end sharing")
	}
	clear(h.failed) // a probe is sent
	h.record(refusal, true, keys)
	h.recordProbe(nil, nil)
	if !h.closed {
		t.Error("a probe that was sent before a failure has cleared it")
	}
	clear(h.failed)
	h.recordProbe(nil, nil)
	if h.closed || len(h.failed) > 0 || h.state() != up {
		t.Errorf("after a successful probe: %+v", h)
	}
	for i := range 1000 {
		h.record(refusal, true, []string{fmt.Sprint(i)})
	}
	if len(h.failed) > maxFailed {
		t.Errorf("%d keys wait for a probe", len(h.failed))
	}
}

// A node of a cluster hangs, and all other writes succeed.
func TestUnansweredProbesEndSharing(t *testing.T) {
	h, timeout, keys := health{failed: make(map[string]bool), proven: true}, os.ErrDeadlineExceeded, []string{"a"}
	for i := range maxMissedProbes {
		if h.closed {
			t.Fatalf("%d unanswered probes end sharing", i)
		}
		clear(h.failed)
		h.recordProbe(timeout, keys)
		h.record(nil, true, nil)
	}
	if h.record(nil, true, nil); !h.closed || h.state() != down {
		t.Fatalf("%d unanswered probes do not end sharing", maxMissedProbes)
	}
	clear(h.failed)
	h.recordProbe(nil, nil)
	if h.closed {
		t.Fatal("an answered probe does not begin sharing again")
	}
}

// redisError is an error that Redis returns.
type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

func TestAProbeHasTheHashSlotOfItsKey(t *testing.T) {
	k := keys{"imapgate:"}
	for key, want := range map[string]string{
		k.gateways():         "imapgate:limit:probe:{imapgate:limit:gateways}",
		k.bans()[0]:          "imapgate:ban:probe:{all}",
		"{x}:limit:gateways": "imapgate:limit:probe:{x}", "imapgate:ban:probe:{all}": "imapgate:ban:probe:{all}", "a{}b": "imapgate:limit:probe:{a{}b}",
	} {
		if got := k.probe(key); got != want {
			t.Errorf("the probe of %s is %s, want %s", key, got, want)
		}
	}
}
