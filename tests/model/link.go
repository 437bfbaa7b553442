package model

import (
	"bytes"
	"net"
	"strconv"
	"sync"
	"time"
)

// link is one connection through a Breaker.
type link struct {
	// Set once.
	breaker   *Breaker
	near, far *net.TCPConn // the gateway's side, the backend's side

	// Guarded by mu, which is held while bytes are passed to the gateway: what
	// place says is what the gateway has got.
	mu     sync.Mutex
	place  place
	fault  *Fault
	passed int // responses or bytes since the fault was claimed
	dead   bool
}

// place is where in the dialogue a stream of responses is.
type place struct {
	open    bool   // inside a response
	literal int    // bytes of a literal that are still to come
	end     []byte // of the line, as much as a literal's size needs
}

// step takes one byte; it says whether a response ended with it.
func (p *place) step(c byte) bool {
	if p.literal > 0 {
		p.literal--
		return false
	}
	p.open = true
	if len(p.end) == 16 {
		p.end = append(p.end[:0], p.end[1:]...)
	}
	p.end = append(p.end, c)
	if c != '\n' {
		return false
	}
	line, marked := bytes.CutSuffix(p.end, []byte("}\r\n"))
	p.end = p.end[:0]
	if i := bytes.LastIndexByte(line, '{'); marked && i >= 0 {
		if n, err := strconv.Atoi(string(line[i+1:])); err == nil && n >= 0 {
			p.literal = n
			return false
		}
	}
	p.open = false
	return true
}

// up passes what the gateway says; it ends when either side does.
func (l *link) up() {
	buf := make([]byte, 16<<10)
	for {
		n, err := l.near.Read(buf)
		if n > 0 && !l.forth(buf[:n]) {
			return
		}
		if err != nil {
			l.kill(FIN)
			return
		}
	}
}

// forth passes a piece to the backend, unless it is lost to a fault.
func (l *link) forth(b []byte) bool {
	if f := l.breaker.claim(b); f != nil {
		l.mu.Lock()
		if f.Lost && l.place.open {
			f.Lost = false // half a response would be cut off as well
		}
		l.fault, l.passed = f, 0
		l.mu.Unlock()
		if f.Lost {
			l.strike(f)
			return false
		}
	}
	_ = l.far.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := l.far.Write(b)
	return err == nil
}

// down passes what the backend says; it ends when either side does.
func (l *link) down() {
	defer l.breaker.forget(l)
	buf := make([]byte, 16<<10)
	for {
		n, err := l.far.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			passed, due := l.back(b)
			if due != nil && !l.strike(due) {
				return
			}
			b = b[passed:]
		}
		if err != nil {
			l.kill(FIN)
			return
		}
	}
}

// back passes a piece to the gateway, up to where a fault is due.
func (l *link) back(b []byte) (passed int, due *Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for passed < len(b) && due == nil {
		if due = l.due(); due == nil {
			ended := l.place.step(b[passed])
			if l.fault != nil && (l.fault.Stage != Boundary && (l.fault.Stage == InLine || l.place.literal > 0) || ended && l.fault.Stage == Boundary) {
				l.passed++
			}
			passed++
		}
	}
	_ = l.near.SetWriteDeadline(time.Now().Add(writeTime))
	_, _ = l.near.Write(b[:passed]) // who is gone is noticed by up
	return passed, due
}

// due is the fault whose place this is. l.mu must be held.
func (l *link) due() *Fault {
	f := l.fault
	if f == nil || l.passed < f.Skip {
		return nil
	}
	switch {
	case f.Stage == Boundary && l.place.open,
		f.Stage == InLine && (!l.place.open || l.place.literal > 0),
		f.Stage == InLiteral && l.place.literal == 0:
		return nil
	}
	l.fault = nil
	return f
}

// strike makes a fault happen; it says whether the link goes on.
func (l *link) strike(f *Fault) bool {
	l.breaker.count(func(b *Broken) {
		switch {
		case f.Do == Stall:
			b.Stalled++
		case f.Stage == Boundary:
			b.Flight++
		default:
			b.Inside++
		}
	})
	if f.Do == Stall {
		<-time.After(stallTime)
		return true
	}
	l.kill(f.Do)
	return false
}

// killBetween ends the link if the gateway has got only whole responses.
func (l *link) killBetween(do Action) {
	l.breaker.count(func(b *Broken) { b.Between++ }) // first: who is cut off may ask at once
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.place.open {
		l.killLocked(do)
	}
}

// kill ends the link. When it returns, the gateway's socket has been told.
func (l *link) kill(do Action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killLocked(do)
}

func (l *link) killLocked(do Action) {
	if l.dead {
		return
	}
	l.dead = true
	switch do {
	case Bye:
		if !l.place.open {
			_, _ = l.near.Write([]byte("* BYE Server shutting down.\r\n")) // it is gone anyway
		}
	case RST:
		_ = l.near.SetLinger(0)
	}
	_ = l.near.Close()
	_ = l.far.Close()
}
