package upstream

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// startSilentBackend sends a greeting and answers no login until the test ends.
func startSilentBackend(t *testing.T) (address string, received <-chan struct{}) {
	t.Helper()
	logins := make(chan struct{}, 8)
	s := testkit.StartIMAP(t, func(c *testkit.Conn) {
		_ = c.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready")
		if line, _ := c.ReadLine(); strings.Contains(line, "AUTHENTICATE") {
			logins <- struct{}{}
		}
		_, _ = io.Copy(io.Discard, c.R)
	})
	return s.Addr(), logins
}

func TestASlowLoginReleasesItsSlot(t *testing.T) {
	address, logins := startSilentBackend(t)
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: address, TLS: event.NoTLS}, LoginSettings: LoginSettings{MaxUpstreamLogins: 1, UpstreamLoginTimeout: time.Hour}}), Hooks{}, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan error, 3)
	began := time.Now()
	for range 3 {
		go func() {
			_, err := b.Login(ctx, testRequest(t))
			results <- err
		}()
	}
	for i := range 3 {
		select {
		case <-logins:
		case <-time.After(testbed.Timeout):
			t.Fatalf("login %d got no slot", i)
		}
	}
	if took := time.Since(began); took < 2*maxSlotTime-100*time.Millisecond {
		t.Errorf("three logins took %v, so two ran at the same time", took)
	}
	cancel()
	for range 3 {
		if err := <-results; !errors.Is(err, ErrUnavailable) {
			t.Error(err)
		}
	}
	if !b.list()[0].limits.Load().slots.TryAcquire(int64(b.cfg().MaxUpstreamLogins)) {
		t.Error("not all slots were released")
	}
}

// loginCounter answers every login with OK after a delay, and counts the most concurrent
// logins.
type loginCounter struct {
	mu            sync.Mutex
	current, peak int // Guarded by mu.
}

func (c *loginCounter) add(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current += n
	c.peak = max(c.peak, c.current)
}

func (c *loginCounter) serve(conn *testkit.Conn) {
	c.add(1)
	_ = conn.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] ready")
	tag, _, _ := conn.ReadCommand()
	<-time.After(5 * time.Millisecond)
	c.add(-1) // before the client gets the answer
	_ = conn.Send(tag + " OK [CAPABILITY IMAP4rev1] in")
	_, _ = io.Copy(io.Discard, conn.R)
}

func TestConcurrentLoginsAreBounded(t *testing.T) {
	var counter loginCounter
	s := testkit.StartIMAP(t, counter.serve)
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: s.Addr(), TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	var clients sync.WaitGroup
	for range 1000 {
		clients.Go(func() {
			conn, err := b.Login(context.Background(), testRequest(t))
			if err != nil {
				t.Error(err)
				return
			}
			_ = conn.Close()
		})
	}
	clients.Wait()
	s.Close()
	if counter.peak > testLimits.MaxUpstreamLogins || counter.peak < 2 {
		t.Errorf("%d concurrent logins", counter.peak)
	}
}

func TestNewConnectionsAreRateLimited(t *testing.T) {
	address, logins := startSilentBackend(t)
	waits := make(chan Wait, 6)
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: address, TLS: event.NoTLS}, LoginSettings: LoginSettings{MaxUpstreamConnectsPerSecond: 4}}), Hooks{OnWait: func(w Wait) { waits <- w }}, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	results := make(chan error, 6)
	waited := make([]time.Duration, cap(results))
	began := time.Now()
	for i := range waited {
		go func() {
			req := testRequest(t)
			req.WaitTime = &waited[i]
			_, err := b.Login(ctx, req)
			results <- err
		}()
	}
	for range cap(results) {
		<-logins
	}
	// The first connects at once, each of the others a quarter of a second later.
	if took := time.Since(began); took < 1240*time.Millisecond {
		t.Errorf("six connections at four in a second took %v", took)
	}
	cancel()
	for range cap(results) {
		<-results
	}
	if n, first := len(waits), <-waits; n != 5 || first != (Wait{event.LimitUpstreamRate, false}) {
		t.Errorf("%d of five waits were reported, the first as %v", n, first)
	}
	slices.Sort(waited)
	if waited[0] != 0 || waited[5] < 1240*time.Millisecond {
		t.Errorf("the logins waited %v", waited)
	}
}

func TestALoginThatCannotGetASlotInTimeIsRefusedAtOnce(t *testing.T) {
	address, logins := startSilentBackend(t)
	var last event.ConnectResult
	var wait Wait
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: address, TLS: event.NoTLS}, LoginSettings: LoginSettings{MaxUpstreamConnectsPerSecond: 1, UpstreamLoginTimeout: 500 * time.Millisecond}}),
		Hooks{OnConnect: func(result event.ConnectResult) { last = result }, OnWait: func(w Wait) { wait = w }}, zap.NewNop())
	if !b.list()[0].limits.Load().connRate.Allow() {
		t.Fatal("nothing is allowed")
	}
	_, err := b.Login(context.Background(), testRequest(t))
	if !errors.Is(err, ErrUnavailable) || last != event.ConnectBusy {
		t.Errorf("%v, %s", err, last)
	}
	if wait != (Wait{event.LimitUpstreamRate, true}) || len(logins) > 0 {
		t.Errorf("reported as %v, %d logins at the backend", wait, len(logins))
	}
}
