package proxy

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/audit"
)

// fullLimiter are turns that somebody has been waiting for since longer than a burst
// lasts; done gives all of them back.
func fullLimiter(atATime int) (t *handshakeLimiter, done func()) {
	t = newHandshakeLimiter(atATime)
	for range atATime {
		t.slots <- struct{}{}
	}
	t.lastStart = time.Now()
	t.lastIdle = t.lastStart.Add(-2 * burstWait)
	return t, func() {
		for range atATime {
			<-t.slots
		}
	}
}

func TestHandshakeWaitIsBoundedUnderOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, done := fullLimiter(2)
		start := time.Now()
		if err := turns.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != maxHandshakeWait {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		done()
		if err := turns.acquire(); err != nil {
			t.Error(err)
		}
	})
}

func TestHandshakeMayWaitLongerInBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newHandshakeLimiter(1)
		if err := turns.acquire(); err != nil { // nobody was there
			t.Fatal(err)
		}
		start := time.Now()
		if err := turns.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != burstWait {
			t.Errorf("the second: %v after %v", err, time.Since(start))
		}
		start = time.Now()
		if err := turns.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != maxHandshakeWait {
			t.Errorf("the third, half a second later: %v after %v", err, time.Since(start))
		}
		<-turns.slots
		for range 2 { // a moment of calm ends no crowd
			if err := turns.acquire(); err != nil {
				t.Fatal(err)
			}
			start = time.Now()
			if err := turns.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != maxHandshakeWait {
				t.Errorf("after a moment of calm: %v after %v", err, time.Since(start))
			}
			<-turns.slots
		}
		<-time.After(overloadMemory)
		if err := turns.acquire(); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if err := turns.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != burstWait {
			t.Errorf("in the next crowd: %v after %v", err, time.Since(start))
		}
	})
}

// With turns that take 20 ms, the fourth in a queue would get its own when its
// patience is just over, and the sixth is not made to wait for that.
func TestHandshakeThatWouldWaitTooLongIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, _ := fullLimiter(1)
		turns.interval = 20 * time.Millisecond
		var waiting sync.WaitGroup
		for range 5 {
			waiting.Go(func() { _ = turns.acquire() })
		}
		synctest.Wait()
		start := time.Now()
		if !turns.isOverloaded() || !errors.Is(turns.acquire(), errOverloaded) || time.Since(start) != 0 {
			t.Errorf("not refused at once: %v", time.Since(start))
		}
		waiting.Wait()
		if turns.isOverloaded() || turns.queued != 0 {
			t.Error("nobody waits any more, and there is no hope")
		}
	})
}

func TestQueuedHandshakesRunInOrderAndSetInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, _ := fullLimiter(1)
		var mu sync.Mutex
		var order []int
		var waiting sync.WaitGroup
		for i := range 10 {
			waiting.Go(func() {
				if err := turns.acquire(); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			})
			synctest.Wait()
		}
		for range 10 {
			<-time.After(5 * time.Millisecond)
			<-turns.slots
			synctest.Wait()
		}
		waiting.Wait()
		if !slices.IsSorted(order) || turns.interval < time.Millisecond || turns.interval > 5*time.Millisecond {
			t.Errorf("served as %v, at a pace of %v", order, turns.interval)
		}
	})
}

func TestQueuedHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, _ := fullLimiter(1)
		var waiting sync.WaitGroup
		for range maxQueuedHandshakes {
			waiting.Go(func() { _ = turns.acquire() })
		}
		synctest.Wait()
		start := time.Now()
		if err := turns.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		waiting.Wait()
	})
}

// withOneHandshake is a gateway that computes one handshake at a time.
func withOneHandshake(s *harnessConfig) { s.cfg.MaxHandshakes = 1 }

func TestSlowClientsHoldNoHandshakeSlot(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withOneHandshake)
	for range 20 { // half a hello: a record that is promised, and some of it
		slow, err := net.Dial("tcp", b.addr("implicit"))
		must(t, err)
		defer slow.Close()
		_, err = io.WriteString(slow, "\x16\x03\x01\x02\x00\x01\x00")
		must(t, err)
	}
	for range 20 { // a whole one, and then nothing is read nor said
		distant, err := net.Dial("tcp", b.addr("implicit"))
		must(t, err)
		defer distant.Close()
		deaf := &stallingConn{Conn: distant, received: make(chan struct{})}
		go func() { _ = tls.Client(deaf, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
		<-deaf.received
	}
	for range 3 {
		c := b.dialGreeted("implicit")
		c.write("a LOGIN alice right\r\n")
		c.expectLine("a OK …")
	}
	if held := len(b.server.handshakes.slots); held != 0 {
		t.Errorf("%d turns are held by nobody who computes", held)
	}
}

// stallingConn is a client's side that hears the first byte of an answer, and goes no
// further.
type stallingConn struct {
	net.Conn
	received chan struct{} // closed then
}

func (m *stallingConn) Read(p []byte) (int, error) {
	if _, err := m.Conn.Read(p[:1]); err != nil {
		return 0, err
	}
	close(m.received)
	return 0, io.EOF
}

// RFC 8446 §4.1.4: the answer to a hello may be the wish for another one.
func TestHelloRetryReleasesHandshakeSlot(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withOneHandshake)
	for range 3 {
		out := b.openssl("a LOGIN alice right\n", "-tls1_3", "-groups", "X448:P-256")
		if !strings.Contains(out, "a OK ") {
			t.Fatalf("%.2000s", out)
		}
		if out = b.openssl("a LOGIN alice right\n", "-tls1_2"); !strings.Contains(out, "a OK ") {
			t.Fatalf("%.2000s", out)
		}
	}
	if held := len(b.server.handshakes.slots); held != 0 {
		t.Errorf("%d turns are held", held)
	}
}

func TestClientWithoutHandshakeSlotIsRefused(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withOneHandshake)
	staying := b.dialGreeted("none")
	staying.write("a LOGIN alice right\r\n")
	staying.expectLine("a OK …")
	turns := b.server.handshakes
	turns.slots <- struct{}{}
	turns.mu.Lock()
	turns.lastIdle = time.Now().Add(-2 * burstWait)
	turns.mu.Unlock()

	start := time.Now()
	nc, err := tls.Dial("tcp", b.addr("implicit"), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		t.Error("a handshake went well without a turn", nc.Close())
	}
	if took := time.Since(start); took < maxHandshakeWait {
		t.Errorf("refused after %v", took)
	}
	if r := b.wantRecord("connection_refused", audit.Overload); !strings.Contains(r.field("detail"), errOverloaded.Error()) {
		t.Error(r)
	}
	turns.mu.Lock()
	turns.interval = 2 * maxHandshakeWait
	turns.queued++
	turns.mu.Unlock()
	told := b.dial("starttls")
	told.expectLine("* BYE [UNAVAILABLE] Too many connections.")
	told.expectEOF()
	staying.write("b NOOP\r\n")
	staying.expectLine("b OK …")
	b.dialGreeted("none") // who asks for no handshake needs no turn

	turns.mu.Lock()
	turns.queued--
	turns.mu.Unlock()
	<-turns.slots
	c := b.dialGreeted("implicit")
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a OK …")
	if !strings.Contains(b.metricsText(), `imapgate_tls_handshakes_total{result="overload"} 1`) {
		t.Error("the refusal is not in the metrics")
	}
}
