package model

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// Breaker stands between a gateway and its backend and breaks connections at a
// point of the dialogue: it knows where responses begin and end, and nothing of
// what they mean.
type Breaker struct {
	// Set once.
	target   string
	listener net.Listener
	wg       sync.WaitGroup // accept and every pump

	// Guarded by mu.
	mu     sync.Mutex
	links  []*link // in the order of their beginning; as many as the gateway opens
	armed  *Fault
	refuse int // connections that are refused before the next is let through
	broken Broken
}

// Broken counts what was done, by how much of it a client may see.
type Broken struct {
	Between int // with nothing under way, as far as the breaker can tell
	Flight  int // at the boundary of responses
	Inside  int // inside a response
	Stalled int
	Refused int
}

// Action is the way a connection breaks.
type Action int

// The ways.
const (
	FIN   Action = iota // both sides are closed
	RST                 // with a reset
	Bye                 // the backend seems to say goodbye first
	Stall               // nothing passes for a while, then everything
)

// Stage is the place in the dialogue at which a fault happens.
type Stage int

// The places.
const (
	Boundary Stage = iota // between responses
	InLine                // inside a line
	InLiteral
)

// Fault is one break. It is armed for the first connection that carries On to
// the backend, and happens at a place in what comes back.
type Fault struct {
	On    string // part of what the gateway says, upper case; "" is anything
	Fresh bool   // the next new connection instead
	Lost  bool   // what the gateway says is lost as well
	Stage Stage
	Skip  int // responses for Boundary, else bytes
	Do    Action
}

// stallTime is how long a stalled connection stands still: nobody's time-out.
const stallTime = 40 * time.Millisecond

// writeTime bounds how long a receiver may take its time.
const writeTime = 30 * time.Second

// StartBreaker listens on a loopback port the kernel chose.
func StartBreaker(target string) (*Breaker, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &Breaker{target: target, listener: l}
	b.wg.Go(b.accept)
	return b, nil
}

// Address is where the gateway connects.
func (b *Breaker) Address() string { return b.listener.Addr().String() }

// Close ends all connections and waits for them.
func (b *Breaker) Close() {
	_ = b.listener.Close()
	for _, l := range b.all() {
		l.kill(FIN)
	}
	b.wg.Wait()
}

// Arm sets the fault that happens next.
func (b *Breaker) Arm(f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.armed = &f
}

// Refuse turns the next n connections away.
func (b *Breaker) Refuse(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refuse = n
}

// Disarm takes back what has not happened.
func (b *Breaker) Disarm() {
	b.mu.Lock()
	b.armed, b.refuse = nil, 0
	b.mu.Unlock()
	for _, l := range b.all() {
		l.mu.Lock()
		l.fault = nil
		l.mu.Unlock()
	}
}

// Broken is what was done so far.
func (b *Breaker) Broken() Broken {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken
}

// Links is how many connections there are.
func (b *Breaker) Links() int { return len(b.all()) }

// KillAll ends the connections that are between two responses, and only those:
// a client would see that half a response is missing.
func (b *Breaker) KillAll(do Action) {
	for _, l := range b.all() {
		l.killBetween(do)
	}
}

// KillOne does the same to one of them.
func (b *Breaker) KillOne(do Action, which int) {
	if all := b.all(); len(all) > 0 {
		all[which%len(all)].killBetween(do)
	}
}

func (b *Breaker) all() []*link {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.links)
}

// count adds to what was done.
func (b *Breaker) count(add func(*Broken)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add(&b.broken)
}

// accept ends when the listener is closed.
func (b *Breaker) accept() {
	for {
		conn, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // whoever it was has gone
		}
		b.welcome(conn.(*net.TCPConn))
	}
}

// welcome connects a gateway's connection to the backend, or turns it away.
func (b *Breaker) welcome(near *net.TCPConn) {
	b.mu.Lock()
	refused := b.refuse > 0
	if refused {
		b.refuse--
		b.broken.Refused++
	}
	b.mu.Unlock()
	if refused {
		reset(near)
		return
	}
	conn, err := net.DialTimeout("tcp", b.target, writeTime)
	if err != nil {
		reset(near)
		return
	}
	l := &link{breaker: b, near: near, far: conn.(*net.TCPConn)}
	b.mu.Lock()
	if b.armed != nil && b.armed.Fresh {
		l.fault, b.armed = b.armed, nil
	}
	b.links = append(b.links, l)
	b.mu.Unlock()
	b.wg.Go(l.up)
	b.wg.Go(l.down)
}

// claim gives the armed fault to the link that carries what it waits for.
func (b *Breaker) claim(said []byte) *Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.armed
	if f == nil || f.Fresh || !bytes.Contains(bytes.ToUpper(said), []byte(f.On)) {
		return nil
	}
	b.armed = nil
	return f
}

func (b *Breaker) forget(l *link) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.links = slices.DeleteFunc(b.links, func(x *link) bool { return x == l })
}

// reset closes with a RST.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
