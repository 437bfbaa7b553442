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

	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// fullLimiter returns a limiter with no free slots whose burst is over; done releases all
// slots.
func fullLimiter(atATime int) (t *handshakeLimiter, done func()) {
	t = newHandshakeLimiter(atATime)
	for range atATime {
		_ = t.slots.TryAcquire(1)
	}
	t.lastStart = time.Now()
	t.lastIdle = t.lastStart.Add(-2 * burstWait)
	return t, func() {
		for range atATime {
			t.slots.Release(1)
		}
	}
}

func TestHandshakeWaitIsBoundedUnderOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, done := fullLimiter(2)
		start := time.Now()
		if err := limiter.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != maxHandshakeWait {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		done()
		if err := limiter.acquire(); err != nil {
			t.Error(err)
		}
	})
}

func TestHandshakeMayWaitLongerInBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter := newHandshakeLimiter(1)
		if err := limiter.acquire(); err != nil { // no handshake waits
			t.Fatal(err)
		}
		start := time.Now()
		if err := limiter.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != burstWait {
			t.Errorf("the second: %v after %v", err, time.Since(start))
		}
		start = time.Now()
		if err := limiter.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != maxHandshakeWait {
			t.Errorf("the third, half a second later: %v after %v", err, time.Since(start))
		}
		limiter.slots.Release(1)
		for range 2 { // a short idle time does not end the overload
			if err := limiter.acquire(); err != nil {
				t.Fatal(err)
			}
			start = time.Now()
			if err := limiter.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != maxHandshakeWait {
				t.Errorf("after a short idle time: %v after %v", err, time.Since(start))
			}
			limiter.slots.Release(1)
		}
		<-time.After(overloadMemory)
		if err := limiter.acquire(); err != nil {
			t.Fatal(err)
		}
		start = time.Now()
		if err := limiter.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != burstWait {
			t.Errorf("in the next burst: %v after %v", err, time.Since(start))
		}
	})
}

// Slots are held for 20 ms. The fourth in a queue would get one just after its maximum
// wait, and the sixth is refused at once.
func TestHandshakeThatWouldWaitTooLongIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, _ := fullLimiter(1)
		limiter.interval = 20 * time.Millisecond
		var waiting sync.WaitGroup
		for range 5 {
			waiting.Go(func() { _ = limiter.acquire() })
		}
		synctest.Wait()
		start := time.Now()
		if limiter.refuseIfOverloaded() == nil || !errors.Is(limiter.acquire(), errOverloaded) || time.Since(start) != 0 {
			t.Errorf("not refused at once: %v", time.Since(start))
		}
		waiting.Wait()
		if limiter.refuseIfOverloaded() != nil || limiter.queued != 0 {
			t.Error("the queue is empty, but the limiter is overloaded")
		}
	})
}

func TestQueuedHandshakesRunInOrderAndSetInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, _ := fullLimiter(1)
		var mu sync.Mutex
		var order []int
		var waiting sync.WaitGroup
		for i := range 10 {
			waiting.Go(func() {
				if err := limiter.acquire(); err != nil {
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
			limiter.slots.Release(1)
			synctest.Wait()
		}
		waiting.Wait()
		if !slices.IsSorted(order) || limiter.interval < time.Millisecond || limiter.interval > 5*time.Millisecond {
			t.Errorf("served in order %v, at an interval of %v", order, limiter.interval)
		}
	})
}

func TestQueuedHandshakesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limiter, _ := fullLimiter(1)
		var waiting sync.WaitGroup
		for range maxQueuedHandshakes {
			waiting.Go(func() { _ = limiter.acquire() })
		}
		synctest.Wait()
		start := time.Now()
		if err := limiter.acquire(); !errors.Is(err, errOverloaded) || time.Since(start) != 0 {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		waiting.Wait()
	})
}

// withOneHandshake allows one handshake at a time.
func withOneHandshake(s *harnessConfig) { s.cfg.TLSHandshakes = 1 }

func TestSlowClientsHoldNoHandshakeSlot(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withOneHandshake)
	for range 20 { // half a ClientHello: a record is announced and partly sent
		slow, err := net.Dial("tcp", b.addr("implicit"))
		testkit.NoError(t, err)
		defer slow.Close()
		_, err = io.WriteString(slow, "\x16\x03\x01\x02\x00\x01\x00")
		testkit.NoError(t, err)
	}
	for range 20 { // a complete ClientHello, and then nothing is read or sent
		distant, err := net.Dial("tcp", b.addr("implicit"))
		testkit.NoError(t, err)
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
	if !b.server.handshakes.slots.TryAcquire(1) {
		t.Error("the slot is held without computing")
	}
}

// stallingConn is a client that stops reading at the first byte of an answer.
type stallingConn struct {
	net.Conn
	received chan struct{} // closed at that byte
}

func (m *stallingConn) Read(p []byte) (int, error) {
	if _, err := m.Conn.Read(p[:1]); err != nil {
		return 0, err
	}
	close(m.received)
	return 0, io.EOF
}

// RFC 8446 §4.1.4: the answer to a ClientHello may request another one.
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
	if !b.server.handshakes.slots.TryAcquire(1) {
		t.Error("the slot is held")
	}
}

func TestClientWithoutHandshakeSlotIsRefused(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withOneHandshake)
	staying := b.dialGreeted("none")
	staying.write("a LOGIN alice right\r\n")
	staying.expectLine("a OK …")
	limiter := b.server.handshakes
	_ = limiter.slots.TryAcquire(1)
	limiter.mu.Lock()
	limiter.lastIdle = time.Now().Add(-2 * burstWait)
	limiter.mu.Unlock()

	start := time.Now()
	nc, err := tls.Dial("tcp", b.addr("implicit"), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		t.Error("a handshake succeeded without a slot", nc.Close())
	}
	if took := time.Since(start); took < maxHandshakeWait {
		t.Errorf("refused after %v", took)
	}
	if r := b.wantRecord("connection_refused", event.Overload); !strings.Contains(r.field("detail"), errOverloaded.Error()) {
		t.Error(r)
	}
	limiter.mu.Lock()
	limiter.interval = 2 * maxHandshakeWait
	limiter.queued++
	limiter.mu.Unlock()
	refused := b.dial("starttls")
	refused.expectLine("* BYE [UNAVAILABLE] Too many connections.")
	refused.expectEOF()
	staying.write("b NOOP\r\n")
	staying.expectLine("b OK …")
	b.dialGreeted("none") // no TLS, no slot needed

	limiter.mu.Lock()
	limiter.queued--
	limiter.mu.Unlock()
	limiter.slots.Release(1)
	c := b.dialGreeted("implicit")
	c.write("a LOGIN alice right\r\n")
	c.expectLine("a OK …")
	if !strings.Contains(b.metricsText(), `imapgate_tls_handshakes_total{result="overload"} 1`) {
		t.Error("the refusal is not in the metrics")
	}
}
