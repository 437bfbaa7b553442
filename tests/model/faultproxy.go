package model

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// FaultProxy stands between a gateway and its backend and breaks connections at a
// point of the dialogue: it knows where responses begin and end, and nothing of
// what they mean.
type FaultProxy struct {
	// Set once.
	target   string
	listener net.Listener
	wg       sync.WaitGroup // accept and every pump

	// Guarded by mu.
	mu       sync.Mutex
	pairs    []*connPair // in the order of their beginning; as many as the gateway opens
	armed    *Fault
	refusals int // connections that are refused before the next is let through
	counts   FaultCounts
}

// FaultCounts counts what was done, by how much of it a client may see.
type FaultCounts struct {
	BetweenCommands int // with nothing under way, as far as the breaker can tell
	InFlight        int // at the boundary of responses
	InsideResponse  int // inside a response
	Stalled         int
	Refused         int
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

// FaultPoint is the place in the dialogue at which a fault happens.
type FaultPoint int

// The places.
const (
	Boundary FaultPoint = iota // between responses
	InLine                     // inside a line
	InLiteral
)

// Fault is one break. It is armed for the first connection that carries On to
// the backend, and happens at a place in what comes back.
type Fault struct {
	Match       string // part of what the gateway says, upper case; "" is anything
	NextConn    bool   // the next new connection instead
	DropCommand bool   // what the gateway says is lost as well
	Point       FaultPoint
	Skip        int // responses for Boundary, else bytes
	Action      Action
}

// stallDuration is how long a stalled connection stands still: nobody's time-out.
const stallDuration = 40 * time.Millisecond

// writeTimeout bounds how long a receiver may take its time.
const writeTimeout = 30 * time.Second

// StartFaultProxy listens on a loopback port the kernel chose.
func StartFaultProxy(target string) (*FaultProxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &FaultProxy{target: target, listener: l}
	b.wg.Go(b.acceptLoop)
	return b, nil
}

// Address is where the gateway connects.
func (b *FaultProxy) Address() string { return b.listener.Addr().String() }

// Close ends all connections and waits for them.
func (b *FaultProxy) Close() {
	_ = b.listener.Close()
	for _, l := range b.listPairs() {
		l.kill(FIN)
	}
	b.wg.Wait()
}

// Arm sets the fault that happens next.
func (b *FaultProxy) Arm(f Fault) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.armed = &f
}

// RefuseNext turns the next n connections away.
func (b *FaultProxy) RefuseNext(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusals = n
}

// Disarm takes back what has not happened.
func (b *FaultProxy) Disarm() {
	b.mu.Lock()
	b.armed, b.refusals = nil, 0
	b.mu.Unlock()
	for _, l := range b.listPairs() {
		l.mu.Lock()
		l.fault = nil
		l.mu.Unlock()
	}
}

// Counts is what was done so far.
func (b *FaultProxy) Counts() FaultCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts
}

// ConnCount is how many connections there are.
func (b *FaultProxy) ConnCount() int { return len(b.listPairs()) }

// KillAll ends the connections that are between two responses, and only those:
// a client would see that half a response is missing.
func (b *FaultProxy) KillAll(do Action) {
	for _, l := range b.listPairs() {
		l.killAtBoundary(do)
	}
}

// KillOne does the same to one of them.
func (b *FaultProxy) KillOne(do Action, which int) {
	if all := b.listPairs(); len(all) > 0 {
		all[which%len(all)].killAtBoundary(do)
	}
}

func (b *FaultProxy) listPairs() []*connPair {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.pairs)
}

// updateCounts adds to what was done.
func (b *FaultProxy) updateCounts(add func(*FaultCounts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add(&b.counts)
}

// acceptLoop ends when the listener is closed.
func (b *FaultProxy) acceptLoop() {
	for {
		conn, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // whoever it was has gone
		}
		b.connectPair(conn.(*net.TCPConn))
	}
}

// connectPair connects a gateway's connection to the backend, or turns it away.
func (b *FaultProxy) connectPair(gatewayConn *net.TCPConn) {
	b.mu.Lock()
	refused := b.refusals > 0
	if refused {
		b.refusals--
		b.counts.Refused++
	}
	b.mu.Unlock()
	if refused {
		resetConn(gatewayConn)
		return
	}
	conn, err := net.DialTimeout("tcp", b.target, writeTimeout)
	if err != nil {
		resetConn(gatewayConn)
		return
	}
	l := &connPair{faultProxy: b, gatewayConn: gatewayConn, backendConn: conn.(*net.TCPConn)}
	b.mu.Lock()
	if b.armed != nil && b.armed.NextConn {
		l.fault, b.armed = b.armed, nil
	}
	b.pairs = append(b.pairs, l)
	b.mu.Unlock()
	b.wg.Go(l.relayToBackend)
	b.wg.Go(l.relayToGateway)
}

// takeArmed gives the armed fault to the link that carries what it waits for.
func (b *FaultProxy) takeArmed(sent []byte) *Fault {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.armed
	if f == nil || f.NextConn || !bytes.Contains(bytes.ToUpper(sent), []byte(f.Match)) {
		return nil
	}
	b.armed = nil
	return f
}

func (b *FaultProxy) removePair(l *connPair) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pairs = slices.DeleteFunc(b.pairs, func(x *connPair) bool { return x == l })
}

// resetConn closes with a RST.
func resetConn(c *net.TCPConn) {
	_ = c.SetLinger(0)
	_ = c.Close()
}
