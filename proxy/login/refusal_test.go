package login

import (
	"errors"
	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/metrics"
	"imapgate/internal/testkit"
	"net/netip"
	"path/filepath"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// Wrong passwords do not hide backend failures: their lines are counted separately.
func TestWrongPasswordsDoNotHideBackendErrors(t *testing.T) {
	core, logged := observer.New(zap.InfoLevel)
	records, err := audit.Open(audit.Config{Settings: audit.Settings{Path: filepath.Join(t.TempDir(), "audit"), OnFailure: "block"}}, zap.NewNop())
	testkit.NoError(t, err)
	c := New(Config{}, Deps{Audit: records, Metrics: metrics.New("test"), Log: zap.New(core)})
	client := &Client{Record: audit.Client{Peer: netip.MustParseAddrPort("192.0.2.66:1")}}
	for i := range 1000 {
		other := &Client{Record: audit.Client{Peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 1)}}
		c.recordRefusal(other, &Attempt{}, refusalOf(auth.ErrDenied), nil)
	}
	passwords := logged.FilterMessage("login refused").Len()
	if passwords == 1000 {
		t.Fatal("the lines about passwords are not bounded")
	}
	const failures = 11
	for range failures {
		c.recordRefusal(client, &Attempt{}, unavailableRefusal(event.BackendDown), errors.New("connection refused"))
	}
	warned := logged.FilterMessage("login refused").FilterLevelExact(zap.WarnLevel).Len()
	if warned != failures-1 {
		t.Errorf("%d lines about the backend", warned)
	}
	c.FlushLogs()
	sums := logged.FilterMessage("logins unavailable").All()
	if len(sums) != 1 || sums[0].ContextMap()["count"] != uint64(1) || sums[0].Level != zap.WarnLevel {
		t.Errorf("%v", sums)
	}
}
