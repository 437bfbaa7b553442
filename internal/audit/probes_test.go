package audit

import (
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"imapgate/internal/event"
)

// The health checks of a load balancer, every two seconds in several ways, are one
// record and one line a minute; the sums are exact.
func TestProbesOfAnAddressMakeOneRecordAMinute(t *testing.T) {
	const minutes, every = 10, 2 * time.Second
	var probed int
	records, logs := runAggregating(t, 0, func(l *Log) {
		for range minutes * int(time.Minute/every) {
			probed++
			kind, why := event.ProbeConnect, event.ClientClosed
			if probed%2 == 0 {
				kind, why = event.ProbeTLS, event.HandshakeFailed
			}
			l.ProbeEnded(&Client{Session: fmt.Sprint(probed), Listener: "imaps", Peer: netip.MustParseAddrPort("10.0.0.9:4711")}, kind, why, 0)
			<-time.After(every) // in the bubble's clock
		}
	})
	if events, _ := countEvents(records); events != probed || len(records) > minutes+1 {
		t.Errorf("%d probes are %d events in %d records", probed, events, len(records))
	}
	var last time.Time
	lines := logs.FilterMessage("probe").All()
	for _, line := range lines[:len(lines)-1] { // the last one is from Close
		if line.Time.Sub(last) < time.Minute {
			t.Errorf("two lines in a minute: %v, %v", last, line)
		}
		last = line.Time
	}
	if len(lines) != len(records) || lines[1].ContextMap()["address"] != "10.0.0.9" || lines[1].ContextMap()["listener"] != "imaps" {
		t.Errorf("%d lines for %d records: %v", len(lines), len(records), lines[1])
	}
}

func TestAggregatedProbesHaveTheMostFrequentReason(t *testing.T) {
	c := &Client{Peer: netip.MustParseAddrPort("10.0.0.9:4711")}
	records, logs := runAggregating(t, 0, func(l *Log) {
		l.ProbeEnded(c, "connect", event.ClientClosed, 0)
		l.ProbeEnded(c, "tls", event.HandshakeFailed, 0)
		l.ProbeEnded(c, "connect", event.HandshakeFailed, 0)
		l.ProbeEnded(c, "connect", event.ClientClosed, 0)
		l.ProbeEnded(c, "connect", event.HandshakeFailed, 0)
		l.ProbeEnded(c, "imap", event.ClientClosed, 0)
		l.ProbeEnded(c, "tls", event.HandshakeFailed, 0)
		l.ProbeEnded(c, "imap", event.ClientLogout, 0)
	})
	lines := logs.FilterMessage("probe").All()
	if len(records) != 2 || len(lines) != 2 || records[1]["reason"] != string(event.HandshakeFailed) || lines[1].ContextMap()["reason"] != string(event.HandshakeFailed) {
		t.Fatalf("%v, %v", records, lines)
	}
	want := map[event.Probe]uint64{"connect": 3, "tls": 2, "imap": 2}
	if kinds := lines[1].ContextMap()["kinds"]; !reflect.DeepEqual(kinds, want) {
		t.Errorf("the kinds are %v, want %v", kinds, want)
	}
}

func TestProbesFromManyAddressesAreBounded(t *testing.T) {
	const flood = 20_000
	records, logs := runAggregating(t, 0, func(l *Log) {
		for i := range flood {
			addr := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
			l.ProbeEnded(&Client{Peer: netip.AddrPortFrom(addr, 1)}, "connect", event.ClientClosed, 0)
		}
	})
	if events, _ := countEvents(records); events != flood || len(records) > maxProbeNets+2 || logs.Len() > maxProbeNets+2 {
		t.Errorf("%d events in %d records and %d lines", events, len(records), logs.Len())
	}
}

func TestLimitHitLogsOneLineAMinute(t *testing.T) {
	c := &Client{Session: "s", Listener: "imaps", Peer: netip.MustParseAddrPort("192.0.2.7:4711")}
	_, logs := runAggregating(t, 0, func(l *Log) {
		for range 120 {
			_ = l.LimitHit(c, &LimitHit{Limit: event.LimitBanned, Subject: "192.0.2.7/32", Result: event.ResultRefused})
			<-time.After(time.Second) // in the bubble's clock
		}
	})
	lines := logs.FilterMessage("limit hit").All()
	if len(lines) < 2 || len(lines) > 3 {
		t.Fatalf("%d lines in two minutes", len(lines))
	}
	first := lines[0].ContextMap()
	if first["limit"] != "banned" || first["subject"] != "192.0.2.7/32" || first["result"] != "refused" || first["count"] != uint64(1) || first["listener"] != "imaps" {
		t.Errorf("the first line is %v", first)
	}
}
