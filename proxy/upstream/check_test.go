package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
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
	proxied := testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: d.Proxied, TLS: event.NoTLS, Forward: ForwardProxy}})
	proxied.Health.Check, proxied.Health.User, proxied.Health.Password, proxied.Health.Timeout = event.CheckLogin, "alice", identity.NewSecret("pw"), timeout
	b := New(proxied, Hooks{}, zap.NewNop())
	if err := b.list()[0].runCheck(t.Context(), b.cfg()); err != nil {
		t.Errorf("behind a PROXY header: %v", err)
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

// A check reads within bounds, and its error has nothing of the backend's text: the backend may
// repeat the password in it.
func TestBadAnswersFailACheck(t *testing.T) {
	t.Parallel()
	server, pool := certificate(t, nil)
	unknown, _ := certificate(t, nil)
	const ready = "> * OK [CAPABILITY IMAP4rev1] ready"
	for name, c := range map[string]struct {
		kind  event.HealthCheck
		mode  event.TLSMode
		tls   *tls.Config
		steps []string
		want  string // part of the error
	}{
		"closed":                {event.CheckGreeting, event.NoTLS, nil, []string{"fin"}, "EOF"},
		"BYE":                   {event.CheckGreeting, event.NoTLS, nil, []string{"> * BYE " + canary}, "backend sent BYE: BYE"},
		"PREAUTH":               {event.CheckGreeting, event.NoTLS, nil, []string{"> * PREAUTH " + canary}, "PREAUTH"},
		"not IMAP":              {event.CheckGreeting, event.NoTLS, nil, []string{"> SSH-2.0-" + canary}, "broke the protocol"},
		"an endless line":       {event.CheckGreeting, event.NoTLS, nil, []string{">> * OK " + strings.Repeat("x", maxLine)}, "too much data"},
		"unknown authority":     {event.CheckConnect, event.ImplicitTLS, unknown, []string{"tls"}, "not issued by a trusted authority"},
		"STARTTLS refused":      {event.CheckGreeting, event.StartTLS, server, []string{greetingStartTLS, "< STARTTLS", "> {S} NO " + canary}, "refused STARTTLS"},
		"another authority":     {event.CheckGreeting, event.StartTLS, unknown, []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls"}, "not issued by a trusted authority"},
		"login refused":         {event.CheckLogin, event.NoTLS, nil, []string{ready, "< LOGIN", "> T1 NO [AUTHENTICATIONFAILED] " + canary}, "NO [AUTHENTICATIONFAILED]"},
		"login with BAD":        {event.CheckLogin, event.NoTLS, nil, []string{ready, "< LOGIN", "> T1 BAD [" + canary + "] " + canary}, "BAD [unknown code]"},
		"closed at the login":   {event.CheckLogin, event.NoTLS, nil, []string{ready, "< LOGIN", "fin"}, "EOF"},
		"BYE at the login":      {event.CheckLogin, event.NoTLS, nil, []string{ready, "< LOGIN", "> * BYE " + canary, "fin"}, ""},
		"nonsense at the login": {event.CheckLogin, event.NoTLS, nil, []string{ready, "< LOGIN", "> ~~ " + canary}, "broke the protocol"},
		"endless at the login":  {event.CheckLogin, event.NoTLS, nil, []string{ready, "< LOGIN", ">> * OK " + strings.Repeat("x", 2*maxTotal)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := &testkit.Steps{Lines: c.steps, TLS: c.tls}
			cfg := testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: p.Start(t), TLS: c.mode}, TLSConfig: testbed.StaticTLS(&tls.Config{RootCAs: pool})})
			cfg.Health.Check, cfg.Health.User, cfg.Health.Password, cfg.Health.Timeout = c.kind, "probe", identity.NewSecret(canary), testbed.Timeout
			b := New(cfg, Hooks{}, zap.NewNop())
			err := b.list()[0].runCheck(t.Context(), b.cfg())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), canary) {
				t.Errorf("%v", err)
			}
			p.Wait()
		})
	}
}

// A silent address fails its checks after the time of one.
func TestASilentAddressFailsItsChecks(t *testing.T) {
	t.Parallel()
	s := testkit.StartIMAP(t, sendSlowly)
	for _, kind := range []event.HealthCheck{event.CheckGreeting, event.CheckLogin} {
		cfg := testbed.WithDefaults(Config{Name: "east", Settings: Settings{Address: s.Addr(), TLS: event.NoTLS}})
		cfg.Health.Check, cfg.Health.Timeout = kind, 200*time.Millisecond
		b := New(cfg, Hooks{}, zap.NewNop())
		if err := b.list()[0].runCheck(t.Context(), b.cfg()); !isTimeout(err) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
