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

	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
	"imapgate/tlsconf"
)

// bed is a session between a client and a backend that the test plays, over
// real sockets: client <-> front, back <-> backend.
type bed struct {
	client, backend net.Conn
	relay           *Relay
	until           time.Time
	result          chan Result
}

var kinds = []string{"plain-plain", "tls-plain", "plain-tls", "tls-tls"}

func testConfig() Config {
	return Config{Quiet: 50 * time.Millisecond, Idle: time.Hour, HalfClosed: time.Hour, Write: time.Hour}
}

func newSet(t testing.TB, cfg Config) *Set {
	t.Helper()
	before := runtime.NumGoroutine()
	s, err := NewSet(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		eventually(t, "every goroutine to end", func() bool { return runtime.NumGoroutine() <= before })
	})
	return s
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(testbed.Patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			buf := make([]byte, 1<<16)
			t.Fatalf("waited in vain for %s\n%s", what, buf[:runtime.Stack(buf, true)])
		}
	}
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

func newBed(t testing.TB, s *Set, kind string, first ...string) *bed {
	t.Helper()
	var client, backend Side
	if len(first) == 2 {
		client.First, backend.First = []byte(first[0]), []byte(first[1])
	}
	return startBed(t, s, kind, client, backend)
}

// startBed fills in the connections of the two sides.
func startBed(t testing.TB, s *Set, kind string, client, backend Side) *bed {
	t.Helper()
	return (&bed{result: make(chan Result, 2)}).start(t, s, kind, client, backend)
}

func (b *bed) start(t testing.TB, s *Set, kind string, client, backend Side) *bed {
	t.Helper()
	b.client, client.Conn = testbed.TCPPair(t)
	backend.Conn, b.backend = testbed.TCPPair(t)
	if strings.HasPrefix(kind, "tls-") {
		b.client, client.Conn = tlsPair(t, b.client, quiet.NewSocket(client.Conn.(*net.TCPConn)))
	}
	if strings.HasSuffix(kind, "-tls") {
		backend.Conn, b.backend = tlsPair(t, quiet.NewSocket(backend.Conn.(*net.TCPConn)), b.backend)
	}
	b.relay = s.Start(client, backend, b.until, func(r Result) { b.result <- r })
	return b
}

func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, c net.Conn, want string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(testbed.Patience))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("heard %q, %v; want %q", got, err, want)
	}
}

func (b *bed) ends(t testing.TB, want Reason) Result {
	t.Helper()
	select {
	case r := <-b.result:
		if r.Reason != want {
			t.Fatalf("ended by %s (%v), want %s", r.Reason, r.Err, want)
		}
		return r
	case <-time.After(testbed.Patience):
		t.Fatalf("the session did not end; want %s", want)
		return Result{}
	}
}

func each(t *testing.T, cfg Config, do func(t *testing.T, s *Set, kind string)) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) { do(t, newSet(t, cfg), kind) })
	}
}

func TestBytesReadTooFarGoFirst(t *testing.T) {
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind, "* 1 EXISTS\r\n", "b SELECT INBOX\r\n")
		say(t, b.client, "c NOOP\r\n")
		say(t, b.backend, "b OK\r\n")
		hear(t, b.backend, "b SELECT INBOX\r\nc NOOP\r\n")
		hear(t, b.client, "* 1 EXISTS\r\nb OK\r\n")
	})
}

func TestAQuietSessionHoldsNoGoroutineAndWakes(t *testing.T) {
	if !quiet.CanPark {
		t.Skip("only Linux parks")
	}
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		before := runtime.NumGoroutine()
		var beds []*bed
		for range 20 {
			beds = append(beds, newBed(t, s, kind))
		}
		for round := range 5 {
			eventually(t, "the sessions to park", func() bool { return s.idle.Len() == 40 && runtime.NumGoroutine() <= before })
			for i, b := range beds {
				line := fmt.Sprintf("%d.%d NOOP\r\n", round, i)
				say(t, b.client, line)
				hear(t, b.backend, line)
				say(t, b.backend, line)
				hear(t, b.client, line)
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

func TestBothWaysAtOnceNothingIsLost(t *testing.T) {
	const size = 8 << 20
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
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
		case <-time.After(testbed.Patience):
			t.Fatal("the session did not end")
		}
	})
}

func TestAHalfClosedSessionGoesOnTheOtherWay(t *testing.T) {
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
		say(t, b.client, "a LOGOUT\r\n")
		if err := quiet.HangUp(b.client); err != nil {
			t.Fatal(err)
		}
		hear(t, b.backend, "a LOGOUT\r\n")
		if n, err := b.backend.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the backend read %d, %v; want the end", n, err)
		}
		say(t, b.backend, "* BYE\r\na OK\r\n")
		hear(t, b.client, "* BYE\r\na OK\r\n")
		_ = b.backend.Close()
		if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("the client read %v; want the end", err)
		}
		b.ends(t, ClientClosed)
	})
}

func TestADeadBackendIsSeenAtOnce(t *testing.T) {
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		for _, parked := range []bool{false, true} {
			b := newBed(t, s, kind)
			if parked && quiet.CanPark {
				eventually(t, "the session to park", func() bool { return s.idle.Len() == 2 })
			}
			say(t, b.backend, "* 1 FETCH (BODY[] {100}\r\nabc")
			hear(t, b.client, "* 1 FETCH (BODY[] {100}\r\nabc")
			tcp := quiet.TCP(b.backend).(*net.TCPConn)
			_ = tcp.SetLinger(0) // RST
			_ = tcp.Close()
			_ = b.client.SetReadDeadline(time.Now().Add(testbed.Patience))
			if n, err := b.client.Read(make([]byte, 1)); n != 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the client read %d bytes, %v", n, err)
			}
			b.ends(t, BackendLost)
		}
	})
}

func TestASlowReaderHoldsTheSenderBack(t *testing.T) {
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
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
		b.relay.End(Drained)
		b.ends(t, Drained)
	})
}

func TestAPacedSessionIsSlowedAndNotCut(t *testing.T) {
	cfg := testConfig()
	cfg.Write = 200 * time.Millisecond // a pace is no stall
	each(t, cfg, func(t *testing.T, s *Set, kind string) {
		var up, down atomic.Int64
		pace := func(told *atomic.Int64) func(int) time.Duration {
			return func(n int) time.Duration {
				told.Add(int64(n))
				return time.Second
			}
		}
		b := startBed(t, s, kind, Side{Pace: pace(&up)}, Side{Pace: pace(&down)})
		began := time.Now()
		for _, line := range []string{"a NOOP\r\n", "b NOOP\r\n"} {
			say(t, b.client, line)
			hear(t, b.backend, line)
		}
		say(t, b.backend, "* BYE\r\n")
		hear(t, b.client, "* BYE\r\n")
		if took := time.Since(began); took < time.Second {
			t.Errorf("two commands passed in %v, with a second to rest behind the first", took)
		}
		// A pace is asked once its bytes are out.
		eventually(t, "the paces to be told of 16 and 7 bytes", func() bool { return up.Load() == 16 && down.Load() == 7 })
		b.relay.End(Drained)
		b.ends(t, Drained)
	})
}

func TestASessionEndsWhileItIsSlowed(t *testing.T) {
	s := newSet(t, testConfig())
	b := startBed(t, s, "plain-plain", Side{Pace: func(int) time.Duration { return time.Hour }}, Side{})
	say(t, b.client, "a NOOP\r\n")
	hear(t, b.backend, "a NOOP\r\n")
	b.relay.End(Drained)
	b.ends(t, Drained)
}

func TestTimeOutsEndSessions(t *testing.T) {
	cfg := testConfig()
	cfg.Idle = 100 * time.Millisecond
	each(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
		b.ends(t, Idle)
		if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
	})
	cfg = testConfig()
	cfg.Write = 100 * time.Millisecond
	each(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
		go func() { _, _ = io.Copy(b.backend, zeros{}) }()
		b.ends(t, ClientStalled)
	})
	cfg = testConfig()
	cfg.HalfClosed = 100 * time.Millisecond
	each(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
		_ = quiet.HangUp(b.backend)
		b.ends(t, BackendClosed)
	})
}

func TestASessionEndsWhenItsTimeIsOver(t *testing.T) {
	each(t, testConfig(), func(t *testing.T, s *Set, kind string) {
		until := time.Now().Add(1200 * time.Millisecond)
		timed := func() *bed {
			return (&bed{result: make(chan Result, 2), until: until}).start(t, s, kind, Side{}, Side{})
		}
		timeless, quiet, busy := newBed(t, s, kind), timed(), timed()
		go func() { _, _ = io.Copy(io.Discard, busy.client) }()
		go func() { _, _ = io.Copy(busy.backend, zeros{}) }()
		for _, b := range []*bed{quiet, busy} {
			b.ends(t, Expired)
		}
		if time.Now().Before(until) {
			t.Error("too soon")
		}
		if _, err := quiet.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
		say(t, timeless.client, "a NOOP\r\n")
		hear(t, timeless.backend, "a NOOP\r\n")
		if len(s.until) != 0 {
			t.Error("it is remembered for good when a session should have ended")
		}
	})
}

// The clock may look at any moment, also when a session is not yet under way.
func TestASessionIsNotIdleBeforeItBegins(t *testing.T) {
	cfg := testConfig()
	cfg.Idle = time.Minute
	s := newSet(t, cfg)
	s.tick.Store(ticks(time.Hour))
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				s.sweep(s.tick.Load())
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
	})
	for range 500 {
		b := newBed(t, s, "plain-plain")
		b.relay.End(Drained)
		b.ends(t, Drained)
	}
}

// The clock asks the pumps of a list that it made before.
func TestAPumpThatParksBeforeItIsAskedIsNotStuck(t *testing.T) {
	if !quiet.CanPark {
		t.Skip("only Linux parks")
	}
	cfg := testConfig()
	cfg.Write = 100 * time.Millisecond
	each(t, cfg, func(t *testing.T, s *Set, kind string) {
		b := newBed(t, s, kind)
		eventually(t, "the session to park", func() bool { return s.idle.Len() == 2 })
		b.relay.up.ask()
		b.relay.down.ask()
		b.relay.expire(s.tick.Load() + ticks(cfg.Write) + 1)
		say(t, b.client, "a NOOP\r\n")
		hear(t, b.backend, "a NOOP\r\n")
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

func TestClosingTheSetEndsEverySession(t *testing.T) {
	s := newSet(t, testConfig())
	var beds []*bed
	for i := range 40 {
		beds = append(beds, newBed(t, s, kinds[i%len(kinds)]))
	}
	s.EndAll(Drained)
	for _, b := range beds {
		b.ends(t, Drained)
		if _, err := b.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the client read %v", err)
		}
	}
	if s.Len() != 0 || s.idle.Len() != 0 {
		t.Errorf("%d sessions, %d parked are left", s.Len(), s.idle.Len())
	}
}

func TestBytesAreReportedOnceEach(t *testing.T) {
	cfg := testConfig()
	var up, down atomic.Int64
	cfg.Bytes = func(u, d int64) {
		up.Add(u)
		down.Add(d)
	}
	s := newSet(t, cfg)
	b := newBed(t, s, "plain-plain")
	for range 3 {
		say(t, b.client, "a NOOP\r\n")
		hear(t, b.backend, "a NOOP\r\n")
		b.relay.report()
	}
	_, _ = b.client.Close(), b.backend.Close()
	r := <-b.result
	if r.Up != 24 {
		t.Errorf("%d bytes went up, want 24", r.Up)
	}
	// The clock may be about to report what it took before the end.
	eventually(t, "reports of what went up and down", func() bool { return up.Load() == r.Up && down.Load() == r.Down })
}

func TestIdleTLSKeepsNoBuffers(t *testing.T) {
	if !quiet.CanPark {
		t.Skip("only Linux parks")
	}
	s := newSet(t, testConfig())
	b := newBed(t, s, "tls-tls")
	say(t, b.client, strings.Repeat("x", 1<<20))
	hear(t, b.backend, strings.Repeat("x", 1<<20))
	eventually(t, "the session to park", func() bool { return s.idle.Len() == 2 })
	for _, p := range []*pump{&b.relay.up, &b.relay.down} {
		conn := reflect.ValueOf(p.src).Elem()
		for _, name := range []string{"rawInput", "hand"} {
			buf := conn.FieldByName(name).FieldByName("buf")
			if !buf.IsValid() || buf.Cap() != 0 {
				t.Errorf("crypto/tls.Conn.%s is not what trim knows, or holds a buffer: %v", name, buf)
			}
		}
	}
	say(t, b.client, "still here")
	hear(t, b.backend, "still here")
	say(t, b.backend, "so am I")
	hear(t, b.client, "so am I")
}
