package logaggregator

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/event"
)

// observeAggregator runs a test of Aggregator in a bubble.
func observeAggregator(t *testing.T, level zapcore.Level, test func(*Aggregator)) *observer.ObservedLogs {
	t.Helper()
	core, logs := observer.New(level)
	synctest.Test(t, func(*testing.T) {
		f := New(zap.New(core), "logins refused")
		test(f)
		f.Flush()
	})
	return logs
}

func TestRefusedLoginFloodIsAggregatedPerMinute(t *testing.T) {
	const flood = 5000
	reasons := []event.Reason{event.BadCredentials, event.NoRoute}
	logged := observeAggregator(t, zap.InfoLevel, func(f *Aggregator) {
		for i := range flood {
			from := netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 100)})
			f.Write(zap.InfoLevel, "login refused", from, reasons[i%2], nil)
		}
		time.Sleep(aggregateInterval + time.Second)
		f.Write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), event.BadName, nil)
	})
	single, sums := logged.FilterMessage("login refused").All(), logged.FilterMessage("logins refused").All()
	if len(single) != maxLines+1 || len(sums) != 1 || single[maxLines].Time.Before(sums[0].Time) {
		t.Fatalf("%d lines and %d sums", len(single), len(sums))
	}
	sum := sums[0].ContextMap()
	counts := sum["reasons"].(map[event.Reason]uint64)
	if sum["count"] != uint64(flood-maxLines) || counts[event.BadCredentials]+counts[event.NoRoute] != flood-maxLines || sum["addresses"] != int64(100) {
		t.Errorf("the sum is %v", sum)
	}
}

func TestAggregateHasHighestLevel(t *testing.T) {
	logged := observeAggregator(t, zap.WarnLevel, func(f *Aggregator) {
		for range 100 {
			f.Write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), event.BadCredentials, nil)
			f.Write(zap.WarnLevel, "login refused", netip.MustParseAddr("192.0.2.1"), event.BackendDown, nil)
		}
	})
	sums := logged.FilterMessage("logins refused").All()
	if len(sums) != 1 || sums[0].ContextMap()["count"] != uint64(100-maxLinesPerNet) {
		t.Errorf("%v", sums)
	}
}

func TestOneAddressCannotTakeAllLines(t *testing.T) {
	logged := observeAggregator(t, zap.InfoLevel, func(f *Aggregator) {
		for i := range 1000 {
			from := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)}) // in one /64
			f.Write(zap.InfoLevel, "login refused", from, event.BadCredentials, nil)
		}
		f.Write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), event.NoRoute, nil)
	})
	lines := logged.FilterMessage("login refused").All()
	if len(lines) != maxLinesPerNet+1 {
		t.Errorf("%d lines", len(lines))
	}
}

func TestFloodFromManyNetworksIsBounded(t *testing.T) {
	logged := observeAggregator(t, zap.InfoLevel, func(f *Aggregator) {
		for i := range 10_000 {
			f.Write(zap.InfoLevel, "login refused", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), event.BadCredentials, nil)
		}
		if len(f.nets) > maxCountedNets || len(f.writtenByNet) > maxLines {
			t.Errorf("%d and %d addresses are kept", len(f.nets), len(f.writtenByNet))
		}
	})
	if logged.Len() != maxLines+1 {
		t.Errorf("%d lines", logged.Len())
	}
}

func TestDebugLevelLogsEveryRefusedLogin(t *testing.T) {
	logged := observeAggregator(t, zap.DebugLevel, func(f *Aggregator) {
		for range 1000 {
			f.Write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), event.BadCredentials, nil)
		}
	})
	lines := logged.FilterMessage("login refused")
	if n, atInfo := lines.Len(), lines.FilterLevelExact(zap.InfoLevel).Len(); n != 1000 || atInfo != maxLinesPerNet {
		t.Errorf("%d lines, %d of them at info", n, atInfo)
	}
}
