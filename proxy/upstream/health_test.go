package upstream

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/breaker"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// newDownHealth returns the health of a backend that is down, and its running trial.
func newDownHealth(t *testing.T) (*health, *trial) {
	t.Helper()
	h := &health{failingSince: time.Now().Add(-downAfter)}
	p, err := h.allow(t.Context(), time.Now().Add(time.Minute))
	if p == nil || err != nil {
		t.Fatalf("no trial: %v", err)
	}
	return h, p
}

// waitingCount returns how many logins wait for a trial.
func (h *health) waitingCount() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting
}

// outcomes counts the results of logins during a trial.
type outcomes struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen map[string]int
}

func (o *outcomes) admit(ctx context.Context, h *health, deadline time.Time) {
	o.wg.Go(func() {
		p, err := h.allow(ctx, deadline)
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.seen == nil {
			o.seen = map[string]int{}
		}
		o.seen[fmt.Sprint(p != nil, errors.Is(err, errDown))]++
	})
}

const wasAllowed, wasTrial, wasRefused = "false false", "true false", "false true"

func TestWaitingLoginsShareTheOutcomeOfATrial(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(h *health, p *trial)
		want map[string]int
	}{
		"up":                   {func(h *health, p *trial) { h.recordSuccess(time.Now()); h.endTrial(p) }, map[string]int{wasAllowed: 10}},
		"up, by another login": {func(h *health, _ *trial) { h.recordSuccess(time.Now()) }, map[string]int{wasAllowed: 10}},
		"down":                 {func(h *health, p *trial) { h.recordFailure(time.Now()); h.endTrial(p) }, map[string]int{wasRefused: 10}},
		"nothing learned":      {func(h *health, p *trial) { h.recordUnknown(p); h.endTrial(p) }, map[string]int{wasTrial: 1, wasRefused: 9}},
		"no end in time":       {func(*health, *trial) { advance(maxTrialWait) }, map[string]int{wasRefused: 10}},
	} {
		synctest.Test(t, func(t *testing.T) {
			h, p := newDownHealth(t)
			var o outcomes
			for range 10 {
				o.admit(t.Context(), h, time.Now().Add(time.Minute))
			}
			synctest.Wait()
			if n := h.waitingCount(); n != 10 {
				t.Fatalf("%s: %d wait", what, n)
			}
			began := time.Now()
			c.end(h, p)
			o.wg.Wait()
			if fmt.Sprint(o.seen) != fmt.Sprint(c.want) || h.waitingCount() != 0 || time.Since(began) > maxTrialWait {
				t.Errorf("%s: %v after %v, %d wait on", what, o.seen, time.Since(began), h.waitingCount())
			}
		})
	}
}

func TestTheNumberOfWaitingLoginsIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, p := newDownHealth(t)
		var o outcomes
		for range breaker.MaxWaiting + 7 {
			o.admit(t.Context(), h, time.Now().Add(time.Minute))
		}
		synctest.Wait()
		if o.mu.Lock(); o.seen[wasRefused] != 7 || h.waitingCount() != breaker.MaxWaiting {
			t.Errorf("%v, %d wait", o.seen, h.waitingCount())
		}
		o.mu.Unlock()
		h.recordSuccess(time.Now())
		h.endTrial(p)
		o.wg.Wait()
		if o.seen[wasAllowed] != breaker.MaxWaiting {
			t.Errorf("%v", o.seen)
		}
	})
}

func TestALoginWaitsForATrialWithinItsDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := newDownHealth(t)
		began := time.Now()
		if _, err := h.allow(t.Context(), began.Add(time.Second/2)); !errors.Is(err, errDown) || time.Since(began) != time.Second/2 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		began = time.Now()
		if _, err := h.allow(ctx, began.Add(time.Minute)); !errors.Is(err, errDown) || time.Since(began) != time.Second/4 || h.waitingCount() != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// A backend comes back while many log in: the trial takes some time, and no login during it is
// refused.
func TestWaitingLoginsSucceedAfterASuccessfulTrial(t *testing.T) {
	release, connected := make(chan struct{}), make(chan struct{}, 20)
	s := testkit.StartIMAP(t, func(c *testkit.Conn) {
		connected <- struct{}{}
		<-release
		_ = c.Send(strings.TrimPrefix(greetingSASLIR, "> "))
		tag, _, _ := c.ReadCommand()
		_ = c.Send(tag + " OK [CAPABILITY IMAP4rev1] in")
	})
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: s.Addr(), TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	b.list()[0].health.failingSince = time.Now().Add(-time.Minute)
	var logins sync.WaitGroup
	login := func() {
		conn, err := b.Login(t.Context(), testRequest(t))
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	}
	logins.Go(login)
	<-connected
	b.list()[0].health.mu.Lock()
	b.list()[0].health.lastTrial = time.Now().Add(time.Hour) // no second trial, even on a slow machine
	b.list()[0].health.mu.Unlock()
	for range 19 {
		logins.Go(login)
	}
	testkit.Eventually(t, "nineteen logins to wait", func() bool {
		b.list()[0].health.mu.Lock()
		defer b.list()[0].health.mu.Unlock()
		return b.list()[0].health.waiting == 19
	})
	close(release)
	logins.Wait()
}
