package upstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/testbed"
)

// downHealth is that of a backend that is down, with the login that is its probe.
func downHealth(t *testing.T) (*health, *probe) {
	t.Helper()
	h := &health{since: time.Now().Add(-downAfter)}
	p, err := h.admit(t.Context(), time.Now().Add(time.Minute))
	if p == nil || err != nil {
		t.Fatalf("no probe: %v", err)
	}
	return h, p
}

// waiting is how many logins wait beside a probe.
func (h *health) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.beside
}

// outcomes are those of logins that come beside a probe.
type outcomes struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen map[string]int
}

func (o *outcomes) admit(ctx context.Context, h *health, deadline time.Time) {
	o.wg.Go(func() {
		p, err := h.admit(ctx, deadline)
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.seen == nil {
			o.seen = map[string]int{}
		}
		o.seen[fmt.Sprint(p != nil, errors.Is(err, errDown))]++
	})
}

const goesOn, probes, isRefused = "false false", "true false", "false true"

func TestLoginsBesideAProbeShareItsOutcome(t *testing.T) {
	for what, c := range map[string]struct {
		end  func(h *health, p *probe)
		want map[string]int
	}{
		"up":                   {func(h *health, p *probe) { h.succeeded(time.Now()); h.end(p) }, map[string]int{goesOn: 10}},
		"up, by another login": {func(h *health, _ *probe) { h.succeeded(time.Now()) }, map[string]int{goesOn: 10}},
		"down":                 {func(h *health, p *probe) { h.failed(time.Now()); h.end(p) }, map[string]int{isRefused: 10}},
		"nothing learned":      {func(h *health, p *probe) { h.unknown(p); h.end(p) }, map[string]int{probes: 1, isRefused: 9}},
		"no end in time":       {func(*health, *probe) { wait(besideFor) }, map[string]int{isRefused: 10}},
	} {
		synctest.Test(t, func(t *testing.T) {
			h, p := downHealth(t)
			var o outcomes
			for range 10 {
				o.admit(t.Context(), h, time.Now().Add(time.Minute))
			}
			synctest.Wait()
			if n := h.waiting(); n != 10 {
				t.Fatalf("%s: %d wait", what, n)
			}
			began := time.Now()
			c.end(h, p)
			o.wg.Wait()
			if fmt.Sprint(o.seen) != fmt.Sprint(c.want) || h.waiting() != 0 || time.Since(began) > besideFor {
				t.Errorf("%s: %v after %v, %d wait on", what, o.seen, time.Since(began), h.waiting())
			}
		})
	}
}

func TestNoMoreLoginsThanTheBoundWaitBesideAProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, p := downHealth(t)
		var o outcomes
		for range maxBeside + 7 {
			o.admit(t.Context(), h, time.Now().Add(time.Minute))
		}
		synctest.Wait()
		if o.mu.Lock(); o.seen[isRefused] != 7 || h.waiting() != maxBeside {
			t.Errorf("%v, %d wait", o.seen, h.waiting())
		}
		o.mu.Unlock()
		h.succeeded(time.Now())
		h.end(p)
		o.wg.Wait()
		if o.seen[goesOn] != maxBeside {
			t.Errorf("%v", o.seen)
		}
	})
}

func TestALoginWaitsBesideAProbeWithinItsOwnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, _ := downHealth(t)
		began := time.Now()
		if _, err := h.admit(t.Context(), began.Add(time.Second/2)); !errors.Is(err, errDown) || time.Since(began) != time.Second/2 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		began = time.Now()
		if _, err := h.admit(ctx, began.Add(time.Minute)); !errors.Is(err, errDown) || time.Since(began) != time.Second/4 || h.waiting() != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// A backend comes back: the login that finds out takes its time, and none that comes
// meanwhile is refused.
func TestLoginsThatComeBesideTheProbeThatSucceedsSucceed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	greets, probed := make(chan struct{}), make(chan struct{}, 20)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer nc.Close()
				probed <- struct{}{}
				<-greets
				_, _ = io.WriteString(nc, strings.TrimPrefix(plainListed, "> ")+"\r\n")
				line, _ := bufio.NewReader(nc).ReadString('\n')
				tag, _, _ := strings.Cut(line, " ")
				_, _ = io.WriteString(nc, tag+" OK [CAPABILITY IMAP4rev1] in\r\n")
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })
	b := New(Config{Address: l.Addr().String(), TLSMode: NoTLS}, Hooks{}, zap.NewNop())
	b.health.since = time.Now().Add(-time.Minute)
	var logins sync.WaitGroup
	login := func() {
		conn, err := b.Login(t.Context(), request1(t))
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	}
	logins.Go(login)
	<-probed
	b.health.mu.Lock()
	b.health.probed = time.Now().Add(time.Hour) // no second probe, however slow the machine
	b.health.mu.Unlock()
	for range 19 {
		logins.Go(login)
	}
	testbed.Within(t, testbed.Patience, "nineteen logins to wait", func() bool {
		b.health.mu.Lock()
		defer b.health.mu.Unlock()
		return b.health.beside == 19
	})
	close(greets)
	logins.Wait()
}
