package upstream

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/breaker"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// loginOverPipe logs in over an in-memory connection with serve at the other end, in a bubble
// of fake time.
func loginOverPipe(t *testing.T, ctx context.Context, serve func(net.Conn)) (time.Duration, error) {
	t.Helper()
	client, server := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		serve(server)
		_, _ = io.Copy(io.Discard, server)
	}()
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	req := testRequest(t)
	creds, err := b.cfg().buildCredentials(req)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	conn, _, err := attempt{address: b.list()[0], cfg: b.cfg(), deadline: began.Add(testLimits.UpstreamLoginTimeout)}.loginOn(ctx, client, req, creds)
	took := time.Since(began)
	if conn != nil {
		_ = conn.Close()
	}
	<-done
	return took, err
}

// advance lets time pass in a bubble.
func advance(d time.Duration) { <-time.After(d) }

func writeString(nc net.Conn, s string) { _, _ = io.WriteString(nc, s) }

func TestTheGreetingIsBoundedByTheLoginTimeout(t *testing.T) {
	for _, tc := range []struct {
		late, took time.Duration
		inTime     bool
	}{{29 * time.Second, 29 * time.Second, true}, {31 * time.Second, 30 * time.Second, false}} {
		synctest.Test(t, func(t *testing.T) {
			took, err := loginOverPipe(t, context.Background(), func(nc net.Conn) {
				advance(tc.late)
				writeString(nc, "* BYE late\r\n")
			})
			if took != tc.took || errors.Is(err, errBye) != tc.inTime || isTimeout(err) == tc.inTime {
				t.Errorf("%v after %v", err, took)
			}
		})
	}
}

// One byte a second does not extend the deadline.
func TestSlowBytesDoNotExtendTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		took, err := loginOverPipe(t, context.Background(), func(nc net.Conn) {
			for _, c := range "* OK " + strings.Repeat("x", 100) {
				advance(time.Second)
				writeString(nc, string(c))
			}
		})
		if took != testLimits.UpstreamLoginTimeout || !isTimeout(err) {
			t.Errorf("%v after %v", err, took)
		}
	})
}

func TestALoginEndsWhenItsContextIsCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(3*time.Second, cancel)
		took, err := loginOverPipe(t, ctx, func(net.Conn) {})
		if took != 3*time.Second || err == nil || ResultOf(ctx, err) != event.ConnectCanceled {
			t.Errorf("%v after %v", err, took)
		}
	})
}

// A client that disconnects at the last moment leaves no logged-in connection.
func TestALoginCompletedAfterCancellationIsClosed(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	req := testRequest(t)
	creds, err := b.cfg().buildCredentials(req)
	if err != nil {
		t.Fatal(err)
	}
	r := &scriptedConn{text: []byte("* OK [CAPABILITY SASL-IR AUTH=PLAIN] hi\r\n{L} OK [CAPABILITY X] in\r\n")}
	conn, _, err := attempt{address: b.list()[0], cfg: b.cfg(), deadline: time.Now().Add(time.Minute)}.loginOn(ctx, r, req, creds)
	if !errors.Is(err, context.Canceled) || conn != nil || !r.loginOK || !r.closed {
		t.Errorf("%v, closed %v", err, r.closed)
	}
}

func TestADownBackendGetsOneTrialPerInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h health
		allow := func() bool { // without a wait
			_, beside, err := h.tryAllow(time.Now())
			return err == nil && beside == nil
		}
		h.recordFailure(time.Now())
		advance(downAfter - 1)
		if !allow() || h.isDown() {
			t.Error("down too early")
		}
		h.recordFailure(time.Now())
		advance(time.Nanosecond)
		if !h.isDown() || !allow() || allow() || allow() {
			t.Error("one login is let through at once, and one only")
		}
		advance(breaker.TrialInterval - 1)
		if allow() {
			t.Error("too many trials")
		}
		advance(time.Nanosecond)
		if !allow() || allow() {
			t.Error("no trial")
		}
		if !h.recordSuccess(time.Now()) || h.isDown() || !allow() || !allow() || h.recordSuccess(time.Now()) {
			t.Error("not back after a success")
		}
	})
}

func TestOnlyBackendFailuresMarkItDown(t *testing.T) {
	for err, counts := range map[error]bool{
		errConnect: true, errProtocol: true, errBye: true, errTLS: true, io.EOF: true,
		ErrDenied: false, ErrLoop: false, errBusy: false, errDown: false, errMasterDenied: false,
		error(&RefusedError{Code: "UNAVAILABLE"}): false,
	} {
		b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
		attempt{address: b.list()[0], cfg: b.cfg()}.recordResult(context.Background(), nil, loginFailure{at: time.Now()}, err, 0)
		if b.list()[0].health.failingSince.IsZero() == counts {
			t.Errorf("%v: %v", err, !counts)
		}
	}
	canceled, cancel := context.WithCancel(context.Background())
	cancel()
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	if (attempt{address: b.list()[0], cfg: b.cfg()}).recordResult(canceled, nil, loginFailure{at: time.Now()}, io.EOF, 0); !b.list()[0].health.failingSince.IsZero() {
		t.Error("a client that disconnected counts against the backend")
	}
}

// A client may begin its login shortly before its own deadline.
func TestAnExpiredContextDoesNotMarkABackendDown(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: (&testkit.Steps{Lines: []string{"hang"}}).Start(t), TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := b.Login(ctx, testRequest(t))
	if !errors.Is(err, ErrUnavailable) || ResultOf(t.Context(), err) != event.ConnectTimeout || !b.list()[0].health.failingSince.IsZero() {
		t.Errorf("%v; failing since %v", err, b.list()[0].health.failingSince)
	}
}

func TestARefusedConnectionIsTriedThreeTimes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	var results []event.ConnectResult
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: address, TLS: event.NoTLS}}), Hooks{OnConnect: func(r event.ConnectResult) { results = append(results, r) }}, zap.NewNop())
	tries := 0
	b.list()[0].dial.control = func(_, _ string, _ syscall.RawConn) error { tries++; return nil }
	began := time.Now()
	if _, err := b.Login(context.Background(), testRequest(t)); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errConnect) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took < 2*connectRetryDelay || tries != 3 || len(results) != 1 || results[0] != event.ConnectUnreachable {
		t.Errorf("%d tries in %v: %v", tries, took, results)
	}
	b.list()[0].health.failingSince, tries = time.Now().Add(-time.Minute), 0
	for range 3 {
		_, err = b.Login(context.Background(), testRequest(t))
	}
	if tries > 3 || !errors.Is(err, errDown) {
		t.Errorf("a backend that is down: %d tries, %v", tries, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	b.list()[0].health.failingSince, tries = time.Time{}, 0
	if _, err = b.Login(ctx, testRequest(t)); err == nil || tries > 1 {
		t.Errorf("the connect outlasted its client: %d tries, %v", tries, err)
	}
}

func TestConnectSucceedsOnTheSecondAttempt(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: address, TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	var tries atomic.Int32
	p := &testkit.Steps{Lines: []string{greetingFull, "< ID", "< AUTH", "> {I} OK\r\n" + loginOK[2:]}}
	var backend *testkit.ScriptedIMAP
	b.list()[0].dial.control = func(_, _ string, _ syscall.RawConn) error {
		if tries.Add(1) != 2 {
			return nil
		}
		var err error
		backend, err = testkit.ListenIMAP(address, p.Run)
		return err
	}
	conn, err := b.Login(context.Background(), testRequest(t))
	if err != nil || tries.Load() != 2 {
		t.Fatal(err, tries.Load())
	}
	_ = conn.Close()
	backend.Wait()
}

func TestLoginsBeyondTheMaximumWaitForASlot(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}, LoginSettings: LoginSettings{MaxUpstreamLogins: 1, UpstreamLoginTimeout: 50 * time.Millisecond}}), Hooks{}, zap.NewNop())
	if _, err := (attempt{address: b.list()[0], cfg: b.cfg(), deadline: time.Now()}).awaitSlot(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Login(context.Background(), testRequest(t)); !errors.Is(err, ErrUnavailable) || !errors.Is(err, errBusy) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (attempt{address: b.list()[0], cfg: b.cfg(), deadline: time.Now().Add(time.Hour)}).awaitSlot(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	expired, cancel := context.WithTimeout(context.Background(), 0)
	defer cancel()
	if _, err := b.Login(expired, testRequest(t)); !errors.Is(err, errBusy) || !b.list()[0].health.failingSince.IsZero() {
		t.Errorf("a wait for a slot counts against the backend: %v", err)
	}
	b.list()[0].limits.Load().slots.Release(1)
	if _, err := (attempt{address: b.list()[0], cfg: b.cfg(), deadline: time.Now()}).awaitSlot(ctx); err != nil {
		t.Errorf("a free slot was not acquired: %v", err)
	}
}
