package upstream

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestHealthChecksOfARealServer(t *testing.T) {
	t.Parallel()
	d := testbed.StartDovecot(t, testbed.DovecotConfig{})
	timeout := testbed.Timeout
	check := func(address string, mode event.TLSMode, kind event.HealthCheck, password string) error {
		cfg := testbed.WithDefaults(Config{
			Name:     "east",
			Settings: Settings{Address: address, TLS: mode, Health: HealthSettings{Check: kind, User: "alice", Password: identity.NewSecret(password)}},
		})
		cfg.Health.Check, cfg.Health.User, cfg.Health.Password, cfg.Health.Timeout = kind, "alice", identity.NewSecret(password), timeout
		cfg.TLSConfig = d.CA.ClientTLSFunc(testbed.DovecotName)
		b := New(cfg, Hooks{}, zap.NewNop())
		return b.list()[0].runCheck(t.Context(), b.cfg())
	}
	for _, server := range []struct {
		address string
		mode    event.TLSMode
	}{{d.Plain, event.NoTLS}, {d.TLS, event.ImplicitTLS}, {d.Plain, event.StartTLS}} {
		for _, kind := range []event.HealthCheck{event.CheckConnect, event.CheckGreeting, event.CheckLogin} {
			if err := check(server.address, server.mode, kind, "pw"); err != nil {
				t.Errorf("%s, %s: %v", server.mode, kind, err)
			}
		}
		if err := check(server.address, server.mode, event.CheckLogin, "wrong"); !errors.Is(err, errCheckLogin) {
			t.Errorf("%s, a wrong password: %v", server.mode, err)
		}
	}
	timeout = 200 * time.Millisecond
	if err := check(d.TLS, event.NoTLS, event.CheckGreeting, ""); err == nil {
		t.Error("a TLS port greets without TLS")
	}
}

func TestChecksNeedSeveralResultsToChangeAState(t *testing.T) {
	s := &HealthSettings{Rise: 2, Fall: 3}
	r := checkResult{isUp: true}
	bad := errors.New("bad")
	for i, step := range []struct {
		err  error
		isUp bool
	}{{bad, true}, {bad, true}, {nil, true}, {bad, true}, {bad, true}, {bad, false}, {bad, false}, {nil, false}, {bad, false}, {nil, false}, {nil, true}, {nil, true}} {
		was := r.isUp
		if changed := r.record(step.err, s); r.isUp != step.isUp || changed != (was != r.isUp) {
			t.Errorf("check %d: up %v, changed %v", i, r.isUp, changed)
		}
	}
}

// States are reported once each, also of an address that flaps, and checks bring it back.
func TestChecksReportEachChangeOnce(t *testing.T) {
	t.Parallel()
	s := testkit.StartIMAP(t, serveLogins)
	address := s.Addr()
	var mu sync.Mutex
	var changes []string
	cfg := testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: address, TLS: event.NoTLS}})
	cfg.Health.Interval, cfg.Health.Fall, cfg.Health.Rise, cfg.Health.Timeout = 10*time.Millisecond, 3, 2, time.Second
	b := New(cfg, Hooks{OnState: func(_ string, old, now event.AddressState, why string) {
		mu.Lock()
		defer mu.Unlock()
		changes = append(changes, fmt.Sprint(old, " ", now, " ", why != ""))
	}}, zap.NewNop())
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = b.Run(ctx) })
	count := func(n int) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(changes) == n
		}
	}
	for i := range 3 {
		s.Close()
		testkit.Eventually(t, "the address is down", count(2*i+1))
		s = testkit.Must(testkit.ListenIMAP(address, serveLogins))(t)
		defer s.Close()
		testkit.Eventually(t, "the address is up", count(2*i+2))
	}
	cancel()
	running.Wait()
	for i, change := range changes {
		if want := []string{"up down true", "down up false"}[i%2]; change != want {
			t.Errorf("change %d: %s", i, change)
		}
	}
}
