package splice

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
	"imapgate/tlsconf"
)

// harness is a session over real sockets: client <-> front, back <-> backend.
type harness struct {
	client, backend net.Conn
	relay           *Relay
	session         *relay.Session
	expiresAt       time.Time
	result          chan relay.Result
}

var transports = []string{"plain-plain", "tls-plain", "plain-tls", "tls-tls"}

func testConfig() Config {
	return Config{ParkAfter: 50 * time.Millisecond, HalfClosedTimeout: time.Hour, WriteTimeout: time.Hour}
}

func newSet(t testing.TB, cfg Config) *Set {
	t.Helper()
	return newSetWith(t, cfg, relay.Config{IdleTimeout: time.Hour})
}

func newSetWith(t testing.TB, cfg Config, sessions relay.Config) *Set {
	t.Helper()
	before := runtime.NumGoroutine()
	registry := relay.NewRegistry(sessions)
	s, err := NewSet(cfg, registry)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		registry.Close()
		testkit.Eventually(t, "every goroutine to end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return s
}

func tlsPair(t testing.TB, client, server net.Conn) (c, s net.Conn) {
	t.Helper()
	cert, err := tlsconf.SelfSigned("localhost")
	if err != nil {
		t.Fatal(err)
	}
	tc := tls.Client(client, &tls.Config{InsecureSkipVerify: true}) // a test's own certificate
	ts := tls.Server(server, &tls.Config{Certificates: []tls.Certificate{cert}})
	done := make(chan error, 1)
	go func() { done <- ts.Handshake() }()
	if err := errors.Join(tc.Handshake(), <-done); err != nil {
		t.Fatal(err)
	}
	return tc, ts
}

func newHarness(t testing.TB, s *Set, kind string, first ...string) *harness {
	t.Helper()
	var client, backend Side
	if len(first) == 2 {
		client.SendFirst, backend.SendFirst = []byte(first[0]), []byte(first[1])
	}
	return startHarness(t, s, kind, client, backend)
}

// startHarness fills in the connections of the two sides.
func startHarness(t testing.TB, s *Set, kind string, client, backend Side) *harness {
	t.Helper()
	return (&harness{result: make(chan relay.Result, 2)}).start(t, s, kind, client, backend)
}

func (b *harness) start(t testing.TB, s *Set, kind string, client, backend Side) *harness {
	t.Helper()
	b.client, client.Conn = testbed.TCPPair(t)
	backend.Conn, b.backend = testbed.TCPPair(t)
	if strings.HasPrefix(kind, "tls-") {
		b.client, client.Conn = tlsPair(t, b.client, parking.NewBufferedConn(client.Conn.(*net.TCPConn)))
	}
	if strings.HasSuffix(kind, "-tls") {
		backend.Conn, b.backend = tlsPair(t, parking.NewBufferedConn(backend.Conn.(*net.TCPConn)), b.backend)
	}
	b.session = s.sessions.Add(relay.Info{ExpiresAt: b.expiresAt}, relay.OwnerFunc(func(r relay.Result) { b.result <- r }))
	b.relay = s.Start(b.session, client, backend, func() {})
	return b
}

func write(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func expectRead(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(testbed.Timeout))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("received %q, %v; want %q", got, err, want)
	}
}

func (b *harness) expectEnd(t testing.TB, want event.Reason) relay.Result {
	t.Helper()
	select {
	case r := <-b.result:
		if r.Reason != want {
			t.Fatalf("ended by %s (%v), want %s", r.Reason, r.Err, want)
		}
		return r
	case <-time.After(testbed.Timeout):
		t.Fatalf("the session did not end; want %s", want)
		return relay.Result{}
	}
}

func forEachTransport(t *testing.T, cfg Config, do func(t *testing.T, s *Set, kind string)) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) { do(t, newSet(t, cfg), kind) })
	}
}

func TestIdleSessionEnds(t *testing.T) {
	for _, kind := range transports {
		t.Run(kind, func(t *testing.T) {
			b := newHarness(t, newSetWith(t, testConfig(), relay.Config{IdleTimeout: 100 * time.Millisecond}), kind)
			b.expectEnd(t, event.Idle)
			if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the client read %v", err)
			}
		})
	}
}

func TestBytesToSendFirstAreSentFirst(t *testing.T) {
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind, "* 1 EXISTS\r\n", "b SELECT INBOX\r\n")
		write(t, b.client, "c NOOP\r\n")
		write(t, b.backend, "b OK\r\n")
		expectRead(t, b.backend, "b SELECT INBOX\r\nc NOOP\r\n")
		expectRead(t, b.client, "* 1 EXISTS\r\nb OK\r\n")
	})
}

func TestIdleSessionParksAndWakes(t *testing.T) {
	if !parking.CanPark {
		t.Skip("only Linux parks")
	}
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		before := runtime.NumGoroutine()
		var beds []*harness
		for range 20 {
			beds = append(beds, newHarness(t, s, kind))
		}
		for round := range 5 {
			testkit.Eventually(t, "the sessions to park", func() bool { return s.poller.Len() == 40 && runtime.NumGoroutine() <= before })
			for i, b := range beds {
				line := fmt.Sprintf("%d.%d NOOP\r\n", round, i)
				write(t, b.client, line)
				expectRead(t, b.backend, line)
				write(t, b.backend, line)
				expectRead(t, b.client, line)
			}
		}
		for _, b := range beds {
			_ = b.client.Close()
			_ = b.backend.Close()
			r := <-b.result
			if r.Up != r.Down || r.Up != int64(len("0.0 NOOP\r\n"))*5 && r.Up != int64(len("0.10 NOOP\r\n"))*5 {
				t.Errorf("counted %d up, %d down", r.Up, r.Down)
			}
		}
	})
}

func TestConcurrentDirectionsLoseNothing(t *testing.T) {
	const size = 8 << 20
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		mail := make([]byte, size)
		rnd := rand.NewChaCha8([32]byte{1})
		_, _ = rnd.Read(mail)
		errs := make(chan error, 4)
		send := func(c net.Conn, seed uint64) {
			rnd, rest := rand.New(rand.NewPCG(seed, 2)), mail
			for len(rest) > 0 {
				n := min(len(rest), 1+rnd.IntN(100_000))
				if _, err := c.Write(rest[:n]); err != nil {
					errs <- err
					return
				}
				if rest = rest[n:]; rnd.IntN(50) == 0 {
					<-time.After(80 * time.Millisecond) // long enough to be asked to park
				}
			}
			errs <- nil
		}
		receive := func(c net.Conn) {
			got := make([]byte, size)
			_, err := io.ReadFull(c, got)
			if err == nil && !bytes.Equal(got, mail) {
				err = errors.New("bytes changed")
			}
			errs <- err
		}
		go send(b.client, 1)
		go send(b.backend, 2)
		go receive(b.client)
		go receive(b.backend)
		for range 4 {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
		_, _ = b.client.Close(), b.backend.Close()
		select {
		case r := <-b.result:
			if r.Up != size || r.Down != size {
				t.Errorf("counted %d up, %d down", r.Up, r.Down)
			}
		case <-time.After(testbed.Timeout):
			t.Fatal("the session did not end")
		}
	})
}

func TestHalfClosedSessionKeepsOtherDirection(t *testing.T) {
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		write(t, b.client, "a LOGOUT\r\n")
		if err := parking.CloseWrite(b.client); err != nil {
			t.Fatal(err)
		}
		expectRead(t, b.backend, "a LOGOUT\r\n")
		if n, err := b.backend.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the backend read %d, %v; want the end", n, err)
		}
		write(t, b.backend, "* BYE\r\na OK\r\n")
		expectRead(t, b.client, "* BYE\r\na OK\r\n")
		_ = b.backend.Close()
		if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the client read %v; want the end", err)
		}
		b.expectEnd(t, event.ClientClosed)
	})
}

func TestBackendResetEndsSessionAtOnce(t *testing.T) {
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		for _, parked := range []bool{false, true} {
			b := newHarness(t, s, kind)
			if parked && parking.CanPark {
				testkit.Eventually(t, "the session to park", func() bool { return s.poller.Len() == 2 })
			}
			write(t, b.backend, "* 1 FETCH (BODY[] {100}\r\nabc")
			expectRead(t, b.client, "* 1 FETCH (BODY[] {100}\r\nabc")
			tcp := parking.TCP(b.backend).(*net.TCPConn)
			_ = tcp.SetLinger(0) // RST
			_ = tcp.Close()
			_ = b.client.SetReadDeadline(time.Now().Add(testbed.Timeout))
			if n, err := b.client.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client read %d bytes, %v", n, err)
			}
			b.expectEnd(t, event.BackendLost)
		}
	})
}

// A client often resets its connection after a BYE, and the session has ended before.
func TestAResetAfterTheEndIsNoErrorOfTheClient(t *testing.T) {
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		write(t, b.backend, "* BYE bye\r\na OK bye\r\n")
		_ = b.backend.Close()
		expectRead(t, b.client, "* BYE bye\r\na OK bye\r\n")
		_ = b.client.SetReadDeadline(time.Now().Add(testbed.Timeout))
		if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
		tcp := parking.TCP(b.client).(*net.TCPConn)
		_ = tcp.SetLinger(0) // RST
		_ = tcp.Close()
		b.expectEnd(t, event.BackendClosed)
	})
}

func TestSlowReaderBlocksSender(t *testing.T) {
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		var sent int
		_ = b.backend.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
		for buf := make([]byte, 1<<16); ; {
			n, err := b.backend.Write(buf)
			sent += n
			if err != nil {
				break
			}
		}
		if sent > 64<<20 {
			t.Errorf("%d bytes went into a session whose client reads nothing", sent)
		}
		b.relay.End(event.Drained)
		b.expectEnd(t, event.Drained)
	})
}

func TestThrottledSessionIsNotAborted(t *testing.T) {
	cfg := testConfig()
	cfg.WriteTimeout = 200 * time.Millisecond // throttling is no stall
	forEachTransport(t, cfg, func(t *testing.T, s *Set, kind string) {
		var up, down atomic.Int64
		pace := func(total *atomic.Int64) func(int) time.Duration {
			return func(n int) time.Duration {
				total.Add(int64(n))
				return time.Second
			}
		}
		b := startHarness(t, s, kind, Side{Throttle: pace(&up)}, Side{Throttle: pace(&down)})
		start := time.Now()
		for _, line := range []string{"a NOOP\r\n", "b NOOP\r\n"} {
			write(t, b.client, line)
			expectRead(t, b.backend, line)
		}
		write(t, b.backend, "* BYE\r\n")
		expectRead(t, b.client, "* BYE\r\n")
		if took := time.Since(start); took < time.Second {
			t.Errorf("two commands passed in %v, with a second to wait after the first", took)
		}
		testkit.Eventually(t, "throttle calls for 16 and 7 bytes", func() bool { return up.Load() == 16 && down.Load() == 7 })
		b.relay.End(event.Drained)
		b.expectEnd(t, event.Drained)
	})
}

func TestThrottledSessionCanEnd(t *testing.T) {
	s := newSet(t, testConfig())
	b := startHarness(t, s, "plain-plain", Side{Throttle: func(int) time.Duration { return time.Hour }}, Side{})
	write(t, b.client, "a NOOP\r\n")
	expectRead(t, b.backend, "a NOOP\r\n")
	b.relay.End(event.Drained)
	b.expectEnd(t, event.Drained)
}

func TestTimeoutsEndSessions(t *testing.T) {
	cfg := testConfig()
	cfg.WriteTimeout = 100 * time.Millisecond
	forEachTransport(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		go func() { _, _ = io.Copy(b.backend, zeroReader{}) }()
		b.expectEnd(t, event.ClientStalled)
	})
	cfg = testConfig()
	cfg.HalfClosedTimeout = 100 * time.Millisecond
	forEachTransport(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		_ = parking.CloseWrite(b.backend)
		b.expectEnd(t, event.BackendClosed)
	})
}

func TestSessionEndsAtDeadline(t *testing.T) {
	forEachTransport(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		until := time.Now().Add(1200 * time.Millisecond)
		timed := func() *harness {
			return (&harness{result: make(chan relay.Result, 2), expiresAt: until}).start(t, s, kind, Side{}, Side{})
		}
		timeless, quiet, busy := newHarness(t, s, kind), timed(), timed()
		go func() { _, _ = io.Copy(io.Discard, busy.client) }()
		go func() { _, _ = io.Copy(busy.backend, zeroReader{}) }()
		for _, b := range []*harness{quiet, busy} {
			b.expectEnd(t, event.TokenExpired)
		}
		if time.Now().Before(until) {
			t.Error("too soon")
		}
		if _, err := quiet.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
		write(t, timeless.client, "a NOOP\r\n")
		expectRead(t, timeless.backend, "a NOOP\r\n")
	})
}

// A session may start after the clock has slept for longer than the timeout.
func TestNewSessionIsNotIdle(t *testing.T) {
	s := newSetWith(t, testConfig(), relay.Config{IdleTimeout: 500 * time.Millisecond})
	<-time.After(time.Second)
	b := newHarness(t, s, "plain-plain")
	write(t, b.client, "a NOOP\r\n")
	expectRead(t, b.backend, "a NOOP\r\n")
	b.relay.End(event.Drained)
	b.expectEnd(t, event.Drained)
}

// The clock checks pumps from a list that it made earlier.
func TestParkedPumpIsNotStalled(t *testing.T) {
	if !parking.CanPark {
		t.Skip("only Linux parks")
	}
	cfg := testConfig()
	cfg.WriteTimeout = 100 * time.Millisecond
	forEachTransport(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newHarness(t, s, kind)
		testkit.Eventually(t, "the session to park", func() bool { return s.poller.Len() == 2 })
		later := s.sessions.Clock.Now() + uint32(cfg.WriteTimeout/relay.Tick) + 1
		b.relay.up.OnTick(later)
		b.relay.down.OnTick(later)
		write(t, b.client, "a NOOP\r\n")
		expectRead(t, b.backend, "a NOOP\r\n")
	})
}

// On a busy machine the goroutine of a write may not run for long, although the peer reads.
func TestWriteThatCouldContinueIsNotStalled(t *testing.T) {
	b := newHarness(t, newSet(t, testConfig()), "plain-plain")
	for _, phase := range []uint32{phaseWriting, phaseSplicing, phaseThrottled} {
		b.relay.down.phase.Store(phase)
		b.relay.down.OnTick(b.relay.set.sessions.Clock.Now() + uint32(2*time.Hour/relay.Tick))
	}
	b.relay.down.phase.Store(phaseReading)
	if b.relay.isClosed() {
		t.Error("the session was cut")
	}
}

// slowConn is a connection whose Close waits, as one under TLS does on a full socket.
type slowConn struct {
	net.Conn
	closing, mayClose chan struct{}
}

func (c *slowConn) NetConn() net.Conn { return c.Conn }

func (c *slowConn) Close() error {
	close(c.closing)
	<-c.mayClose
	return c.Conn.Close()
}

func TestTheEndIsReportedAfterTheSocketsAreClosed(t *testing.T) {
	s := newSet(t, testConfig())
	client, clientEnd := testbed.TCPPair(t)
	backendEnd, backend := testbed.TCPPair(t)
	slow := &slowConn{clientEnd, make(chan struct{}), make(chan struct{})}
	b := &harness{result: make(chan relay.Result, 2)}
	b.session = s.sessions.Add(relay.Info{}, relay.OwnerFunc(func(r relay.Result) { b.result <- r }))
	b.relay = s.Start(b.session, Side{Conn: slow}, Side{Conn: backendEnd}, func() {})
	b.relay.End(event.Drained)
	<-slow.closing
	_, _ = client.Close(), backend.Close()
	testkit.Eventually(t, "the pumps to stop", func() bool {
		b.relay.mu.Lock()
		defer b.relay.mu.Unlock()
		return b.relay.socketUsers == 1 && b.relay.openDirections == 0
	})
	<-time.After(10 * time.Millisecond)
	if len(b.result) > 0 {
		t.Error("the session ended with an open socket")
	}
	close(slow.mayClose)
	b.expectEnd(t, event.Drained)
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { return len(p), nil }

func TestSetCloseEndsEverySession(t *testing.T) {
	s := newSet(t, testConfig())
	var beds []*harness
	for i := range 40 {
		beds = append(beds, newHarness(t, s, transports[i%len(transports)]))
	}
	s.sessions.AbortAll(event.Drained)
	for _, b := range beds {
		b.expectEnd(t, event.Drained)
		if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
	}
	if s.sessions.Len() != 0 || s.poller.Len() != 0 {
		t.Errorf("%d sessions, %d parked are left", s.sessions.Len(), s.poller.Len())
	}
}

func TestBytesAreReportedOnce(t *testing.T) {
	var up, down atomic.Int64
	s := newSetWith(t, testConfig(), relay.Config{OnBytes: func(u, d int64) {
		up.Add(u)
		down.Add(d)
	}})
	b := newHarness(t, s, "plain-plain")
	for range 3 {
		write(t, b.client, "a NOOP\r\n")
		expectRead(t, b.backend, "a NOOP\r\n")
		<-time.After(120 * time.Millisecond) // parking reports bytes, too
	}
	_, _ = b.client.Close(), b.backend.Close()
	r := <-b.result
	if r.Up != 24 {
		t.Errorf("%d bytes went up, want 24", r.Up)
	}
	// The clock may still report bytes that it took before the end.
	testkit.Eventually(t, "reports of what went up and down", func() bool { return up.Load() == r.Up && down.Load() == r.Down })
}

func TestIdleTLSKeepsNoBuffers(t *testing.T) {
	if !parking.CanPark {
		t.Skip("only Linux parks")
	}
	s := newSet(t, testConfig())
	b := newHarness(t, s, "tls-tls")
	write(t, b.client, strings.Repeat("x", 1<<20))
	expectRead(t, b.backend, strings.Repeat("x", 1<<20))
	testkit.Eventually(t, "the session to park", func() bool { return s.poller.Len() == 2 })
	for _, p := range []*pump{&b.relay.up, &b.relay.down} {
		conn := reflect.ValueOf(p.src).Elem()
		for _, name := range []string{"rawInput", "hand"} {
			buf := conn.FieldByName(name).FieldByName("buf")
			if !buf.IsValid() || buf.Cap() != 0 {
				t.Errorf("crypto/tls.Conn.%s is not as ReleaseBuffers expects, or holds a buffer: %v", name, buf)
			}
		}
	}
	write(t, b.client, "still here")
	expectRead(t, b.backend, "still here")
	write(t, b.backend, "so am I")
	expectRead(t, b.client, "so am I")
}
