package audit

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// runAggregating runs a test in a synctest bubble, with a log that folds after first
// records, and returns the records and log lines up to its Close.
func runAggregating(t *testing.T, first int, test func(*Log)) (records []map[string]any, logs *observer.ObservedLogs) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit")
	core, logs := observer.New(zapcore.InfoLevel)
	synctest.Test(t, func(t *testing.T) {
		l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: path, FirstPerMinute: first}}, "path", "first_per_minute"), zap.New(core))
		if err != nil {
			t.Fatal(err)
		}
		test(l)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if n := l.LostRecords(); n > 0 {
			t.Errorf("%d records are lost", n)
		}
	})
	return lines(t, path), logs
}

// countEvents returns the number of events, and the number of folded records.
func countEvents(records []map[string]any) (events, aggregates int) {
	for _, r := range records {
		if count, ok := r["count"].(float64); ok {
			events += int(count)
			aggregates++
		} else {
			events++
		}
	}
	return events, aggregates
}

func clientNumber(n int) *Client {
	return &Client{Session: fmt.Sprint(n), Peer: netip.MustParseAddrPort("192.0.2.66:4711")}
}

func TestFloodFromOneAddressIsAggregated(t *testing.T) {
	const flood = 41_551
	records, _ := runAggregating(t, 10, func(l *Log) {
		for i := range flood {
			if err := l.ConnectionRefused(clientNumber(i), event.TooManyConnections, "limit: banned", time.Second); err != nil {
				t.Error(err)
			}
			if i%5000 == 0 {
				time.Sleep(time.Second) // in the bubble's clock
			}
		}
		_ = l.ConnectionRefused(clientNumber(flood), event.HandshakeFailed, "x", 0) // another reason has its own count
		time.Sleep(2 * aggregateInterval)                                           // without any event
	})
	events, folded := countEvents(records)
	if events != flood+1 || folded != 1 || len(records) != 12 {
		t.Errorf("%d events in %d records, %d of them folded", events, len(records), folded)
	}
	last := records[len(records)-1]
	if last["count"] != float64(flood-10) || last["session"] != fmt.Sprint(flood-1) || last["peer"] != "192.0.2.66:4711" || last["detail"] == nil {
		t.Errorf("the count is %v", last)
	}
}

// In a continuing flood each minute has its first records and a count. Close writes
// the counts that are still open.
func TestAggregatedEventsAreAllCounted(t *testing.T) {
	const seconds = 150
	records, _ := runAggregating(t, 10, func(l *Log) {
		for i := range seconds * 10 {
			_ = l.ConnectionRefused(clientNumber(i), event.WrongProtocol, "", 0)
			time.Sleep(100 * time.Millisecond)
		}
	})
	if events, folded := countEvents(records); events != seconds*10 || folded != 3 || len(records) != 33 {
		t.Errorf("%d events in %d records, %d of them folded", events, len(records), folded)
	}
}

// An IPv6 network has practically unlimited addresses.
func TestFloodFromManyAddressesIsBounded(t *testing.T) {
	const flood = 100_000
	records, _ := runAggregating(t, 10, func(l *Log) {
		for i := range flood {
			addr := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 16), byte(i >> 8), byte(i)})
			_ = l.ConnectionRefused(&Client{Peer: netip.AddrPortFrom(addr, 1)}, event.PreauthTimeout, "", 0)
		}
	})
	events, folded := countEvents(records)
	if events != flood || len(records) > maxSingles+maxRefusalKeys+1 {
		t.Errorf("%d events in %d records, %d of them folded", events, len(records), folded)
	}
	if last := records[len(records)-1]; last["peer"] != nil || last["count"] == nil {
		t.Errorf("a record of all addresses together names a client: %v", last)
	}
}

func TestIPv6AddressesAreAggregatedByNetwork(t *testing.T) {
	records, _ := runAggregating(t, 10, func(l *Log) {
		for i := range 100 {
			addr := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)})
			_ = l.ConnectionRefused(&Client{Peer: netip.MustParseAddrPort("10.0.0.9:1"), Addr: netip.AddrPortFrom(addr, 1)}, event.ClientClosed, "", 0)
		}
	})
	if events, folded := countEvents(records); events != 100 || folded != 1 || len(records) != 11 {
		t.Errorf("%d events in %d records, %d of them folded", events, len(records), folded)
	}
}

// Refusals before verification are folded, by user. Refusals that reveal whether a
// password was correct, and internal errors, never are.
func TestVerdictsAreNeverAggregated(t *testing.T) {
	alice := testkit.Must(identity.Canonicalize("alice@example.org", ""))(t)
	for _, word := range event.Words("Reason") {
		why := event.Reason(word.Value)
		for _, method := range []string{"", "file"} {
			want := why == event.Cleartext || why == event.BadMechanism || why == event.BadExchange || why == event.ClientAborted || why == event.LimitReached && method == ""
			records, _ := runAggregating(t, 10, func(l *Log) {
				for range 30 {
					_ = l.LoginRefused(clientNumber(1), &Login{User: alice, Method: method}, why)
				}
			})
			if events, folded := countEvents(records); events != 30 || (folded > 0) != want {
				t.Errorf("%s, method %q: %d events in %d records", why, method, events, len(records))
			}
		}
	}
	records, _ := runAggregating(t, 10, func(l *Log) {
		for range 30 {
			_ = l.LoginAccepted(clientNumber(1), &Login{User: alice})
			_ = l.ConnectionRefused(clientNumber(1), event.InternalError, "", 0)
		}
	})
	if events, folded := countEvents(records); events != 60 || folded > 0 {
		t.Errorf("%d events, %d folded", events, folded)
	}
}

func TestZeroDisablesAggregation(t *testing.T) {
	records, _ := runAggregating(t, 0, func(l *Log) {
		for i := range 1000 {
			_ = l.ConnectionRefused(clientNumber(i), event.TooManyConnections, "", 0)
		}
	})
	if _, folded := countEvents(records); len(records) != 1000 || folded > 0 {
		t.Errorf("%d records, %d of them folded", len(records), folded)
	}
}
