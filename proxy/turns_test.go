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

// busy are turns that somebody has been waiting for since longer than a burst
// lasts; done gives all of them back.
func busy(atATime int) (t *turns, done func()) {
	t = newTurns(atATime)
	for range atATime {
		t.slots <- struct{}{}
	}
	t.last = time.Now()
	t.calm = t.last.Add(-2 * burst)
	return t, func() {
		for range atATime {
			<-t.slots
		}
	}
}

func TestWhoFindsACrowdWaitsForPatienceAndNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, done := busy(2)
		began := time.Now()
		if err := turns.enter(); !errors.Is(err, errBusy) || time.Since(began) != patience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		done()
		if err := turns.enter(); err != nil {
			t.Error(err)
		}
	})
}

func TestInAShortCrowdAHandshakeMayWaitLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1)
		if err := turns.enter(); err != nil { // nobody was there
			t.Fatal(err)
		}
		began := time.Now()
		if err := turns.enter(); !errors.Is(err, errBusy) || time.Since(began) != burst {
			t.Errorf("the second: %v after %v", err, time.Since(began))
		}
		began = time.Now()
		if err := turns.enter(); !errors.Is(err, errBusy) || time.Since(began) != patience {
			t.Errorf("the third, half a second later: %v after %v", err, time.Since(began))
		}
		<-turns.slots
		for range 2 { // a moment of calm ends no crowd
			if err := turns.enter(); err != nil {
				t.Fatal(err)
			}
			began = time.Now()
			if err := turns.enter(); !errors.Is(err, errBusy) || time.Since(began) != patience {
				t.Errorf("after a moment of calm: %v after %v", err, time.Since(began))
			}
			<-turns.slots
		}
		<-time.After(crowded)
		if err := turns.enter(); err != nil {
			t.Fatal(err)
		}
		began = time.Now()
		if err := turns.enter(); !errors.Is(err, errBusy) || time.Since(began) != burst {
			t.Errorf("in the next crowd: %v after %v", err, time.Since(began))
		}
	})
}

// With turns that take 20 ms, the fourth in a queue would get its own when its
// patience is just over, and the sixth is not made to wait for that.
func TestWhoWouldWaitInVainIsRefusedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, _ := busy(1)
		turns.pace = 20 * time.Millisecond
		var waiting sync.WaitGroup
		for range 5 {
			waiting.Go(func() { _ = turns.enter() })
		}
		synctest.Wait()
		began := time.Now()
		if !turns.hopeless() || !errors.Is(turns.enter(), errBusy) || time.Since(began) != 0 {
			t.Errorf("not refused at once: %v", time.Since(began))
		}
		waiting.Wait()
		if turns.hopeless() || turns.waiting != 0 {
			t.Error("nobody waits any more, and there is no hope")
		}
	})
}

func TestThoseWhoWaitForATurnGetItInOrderAndSetThePace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, _ := busy(1)
		var mu sync.Mutex
		var order []int
		var waiting sync.WaitGroup
		for i := range 10 {
			waiting.Go(func() {
				if err := turns.enter(); err != nil {
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
		if !slices.IsSorted(order) || turns.pace < time.Millisecond || turns.pace > 5*time.Millisecond {
			t.Errorf("served as %v, at a pace of %v", order, turns.pace)
		}
	})
}

func TestNoMoreHandshakesWaitThanMayWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns, _ := busy(1)
		var waiting sync.WaitGroup
		for range maxWaiting {
			waiting.Go(func() { _ = turns.enter() })
		}
		synctest.Wait()
		began := time.Now()
		if err := turns.enter(); !errors.Is(err, errBusy) || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		waiting.Wait()
	})
}

// oneTurn is a gateway that computes one handshake at a time.
func oneTurn(s *setup) { s.cfg.Handshakes = 1 }

func TestSlowHellosAndDistantClientsHoldNoTurn(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), oneTurn)
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
		deaf := &mute{Conn: distant, heard: make(chan struct{})}
		go func() { _ = tls.Client(deaf, &tls.Config{InsecureSkipVerify: true}).Handshake() }()
		<-deaf.heard
	}
	for range 3 {
		c := b.greeted("implicit")
		c.say("a LOGIN alice right\r\n")
		c.hear("a OK …")
	}
	if held := len(b.server.turns.slots); held != 0 {
		t.Errorf("%d turns are held by nobody who computes", held)
	}
}

// mute is a client's side that hears the first byte of an answer, and goes no
// further.
type mute struct {
	net.Conn
	heard chan struct{} // closed then
}

func (m *mute) Read(p []byte) (int, error) {
	if _, err := m.Conn.Read(p[:1]); err != nil {
		return 0, err
	}
	close(m.heard)
	return 0, io.EOF
}

// RFC 8446 §4.1.4: the answer to a hello may be the wish for another one.
func TestAClientThatSaysHelloTwiceHasTwoTurnsAndKeepsNone(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), oneTurn)
	for range 3 {
		out := b.openssl("a LOGIN alice right\n", "-tls1_3", "-groups", "X448:P-256")
		if !strings.Contains(out, "a OK ") {
			t.Fatalf("%.2000s", out)
		}
		if out = b.openssl("a LOGIN alice right\n", "-tls1_2"); !strings.Contains(out, "a OK ") {
			t.Fatalf("%.2000s", out)
		}
	}
	if held := len(b.server.turns.slots); held != 0 {
		t.Errorf("%d turns are held", held)
	}
}

func TestWithoutATurnAClientIsTurnedAway(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), oneTurn)
	staying := b.greeted("none")
	staying.say("a LOGIN alice right\r\n")
	staying.hear("a OK …")
	turns := b.server.turns
	turns.slots <- struct{}{}
	turns.mu.Lock()
	turns.calm = time.Now().Add(-2 * burst)
	turns.mu.Unlock()

	began := time.Now()
	nc, err := tls.Dial("tcp", b.addr("implicit"), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		t.Error("a handshake went well without a turn", nc.Close())
	}
	if took := time.Since(began); took < patience {
		t.Errorf("refused after %v", took)
	}
	if r := b.wantRecord("connection_refused", audit.Overload); !strings.Contains(r.field("detail"), errBusy.Error()) {
		t.Error(r)
	}
	turns.mu.Lock()
	turns.pace = 2 * patience
	turns.waiting++
	turns.mu.Unlock()
	told := b.dial("starttls")
	told.hear("* BYE [UNAVAILABLE] Too many connections.")
	told.end()
	staying.say("b NOOP\r\n")
	staying.hear("b OK …")
	b.greeted("none") // who asks for no handshake needs no turn

	turns.mu.Lock()
	turns.waiting--
	turns.mu.Unlock()
	<-turns.slots
	c := b.greeted("implicit")
	c.say("a LOGIN alice right\r\n")
	c.hear("a OK …")
	if !strings.Contains(b.scrape(), `imapgate_tls_handshakes_total{result="overload"} 1`) {
		t.Error("the refusal is not in the metrics")
	}
}
