package metrics_test

import (
	"fmt"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

func TestEachMuxEventIsCountedInItsSeries(t *testing.T) {
	m := metrics.New("v")
	m.ObserveSplicing("east", func() bool { return true }, func() int { return 2 })
	m.ObserveSplicing("west", func() bool { return false }, func() int { return 0 })
	m.Mux.CountReattach("lost", "ok", 30*time.Millisecond)
	m.Mux.CountDeferredExpunge()
	m.Mux.CountExpungeIssued()
	m.Mux.CountRetry("UID FETCH")
	m.Mux.CountTermination("mailbox_gone")
	m.Mux.CountViolation(event.ExistsShrank)
	m.Mux.ObserveLeaseWait(2 * time.Millisecond)
	m.Mux.ChangeState("", event.StateUnselected)
	m.Mux.ChangeState("", event.StateUnselected)
	m.Mux.ChangeState(event.StateUnselected, event.StateAttached)
	m.Mux.ChangeState("", event.StatePinned)
	m.Mux.ChangeState(event.StatePinned, "")
	m.Mux.CountPin("notify")
	m.Mux.CountConsistencyCheck(event.ResultSame)
	m.Mux.AddPoolConnections(1)
	m.Mux.AddPoolConnections(1)
	m.Mux.AddPoolConnections(-1)
	m.Mux.CountPoolReuse()
	m.Mux.CountPoolDiscard(event.DiscardUnread)
	got := scrape(t, m)
	for series, want := range map[string]string{
		`imapgate_mux_reattach_seconds_bucket{le="0.025"}`:                 "0",
		`imapgate_mux_reattach_seconds_bucket{le="0.05"}`:                  "1",
		`imapgate_mux_reattaches_total{reason="lost",result="ok"}`:         "1",
		`imapgate_mux_reattaches_total{reason="hold",result="gone"}`:       "0",
		`imapgate_mux_reattach_expunge_deferred_total`:                     "1",
		`imapgate_mux_expungeissued_total`:                                 "1",
		`imapgate_mux_retries_total{command="UID FETCH"}`:                  "1",
		`imapgate_mux_sessions_terminated_total{reason="mailbox_gone"}`:    "1",
		`imapgate_backend_protocol_violations_total{kind="exists_shrank"}`: "1",
		`imapgate_mux_backend_spliced{backend="east"}`:                     "1",
		`imapgate_mux_backend_spliced{backend="west"}`:                     "0",
		`imapgate_mux_spliced_users{backend="east"}`:                       "2",
		`imapgate_mux_lease_wait_seconds_count`:                            "1",
		`imapgate_mux_sessions{state="unselected"}`:                        "1",
		`imapgate_mux_sessions{state="attached"}`:                          "1",
		`imapgate_mux_sessions{state="pinned"}`:                            "0",
		`imapgate_mux_pins_total{reason="notify"}`:                         "1",
		`imapgate_mux_consistency_checks_total{result="same"}`:             "1",
		`imapgate_mux_pool_connections`:                                    "1",
		`imapgate_mux_pool_reused_total`:                                   "1",
		`imapgate_mux_pool_discarded_total{reason="unread"}`:               "1",
	} {
		if got[series] != want {
			t.Errorf("%s is %q, want %q", series, got[series], want)
		}
	}
}

func TestUnknownMuxValuesCountAsOther(t *testing.T) {
	m := metrics.New("v")
	before := len(scrape(t, m))
	for i := range 1000 {
		unknown := fmt.Sprintf("made up %d", i)
		m.Mux.CountReattach(event.ReattachReason(unknown), event.Result(unknown), 0)
		m.Mux.CountReattach("lost", event.Result(unknown), 0)
		m.Mux.CountReattach(event.ReattachReason(unknown), "ok", 0)
		m.Mux.CountRetry(unknown)
		m.Mux.CountTermination(event.Reason(unknown))
		m.Mux.CountViolation(event.Violation(unknown))
		m.Mux.ChangeState(event.State(unknown), event.State(unknown))
		m.Mux.CountPin(event.PinReason(unknown))
		m.Mux.CountConsistencyCheck(event.Result(unknown))
		m.Mux.CountPoolDiscard(event.DiscardReason(unknown))
	}
	got := scrape(t, m)
	if len(got) != before {
		t.Errorf("%d series became %d", before, len(got))
	}
	for _, labels := range []string{`reason="lost",result="other"`, `reason="other",result="ok"`, `reason="other",result="other"`} {
		if n := got["imapgate_mux_reattaches_total{"+labels+"}"]; n != "1000" {
			t.Errorf("reattaches with %s: %s", labels, n)
		}
	}
}

func TestMuxCountingAllocatesNothing(t *testing.T) {
	m := metrics.New("v")
	if n := testing.AllocsPerRun(100, func() {
		m.Mux.CountReattach("detach", "ok", time.Millisecond)
		m.Mux.CountDeferredExpunge()
		m.Mux.CountExpungeIssued()
		m.Mux.CountRetry("FETCH")
		m.Mux.ObserveLeaseWait(time.Millisecond)
		m.Mux.ChangeState(event.StateAttached, event.StateIdle)
		m.Mux.CountConsistencyCheck(event.ResultSame)
		m.Mux.AddPoolConnections(1)
		m.Mux.AddPoolConnections(-1)
		m.Mux.CountPoolReuse()
		m.Mux.CountPoolDiscard(event.DiscardTTL)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
