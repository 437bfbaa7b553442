package model

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"sync"
	"time"
)

// FaultProxy is a proxy between a gateway and its backend that breaks connections at
// chosen points of the dialogue. It finds the boundaries of responses but does not
// interpret them.
type FaultProxy struct {
	// Set once.
	target   string
	listener net.Listener
	wg       sync.WaitGroup // acceptLoop and every relay

	// Guarded by mu.
	mu       sync.Mutex
	pairs    []*connPair // oldest first; bounded by the gateway
	armed    *Fault
	refusals int // connections still to be refused
	counts   FaultCounts
}

// FaultCounts counts the faults by what a client may see of them.
type FaultCounts struct {
	BetweenCommands int // no command outstanding, as far as the proxy knows
	InFlight        int // between responses
	InsideResponse  int // inside a response
	Stalled         int
	Refused         int
}

// Action is what a fault does to a connection.
type Action int

// The actions.
const (
	FIN   Action = iota // close both sides
	RST                 // close, with RST to the gateway
	Bye                 // send BYE to the gateway, then close
	Stall               // pause the responses for stallDuration
)

// FaultPoint is the position in the dialogue at which a fault happens.
type FaultPoint int

// The positions.
const (
	Boundary FaultPoint = iota // between responses
	InLine                     // inside a line
	InLiteral
)

// Fault is a single fault. It hits the first connection that sends Match to the backend,
// and happens at Point in the responses that follow.
type Fault struct {
	Match       string // part of a command, upper case; "": any command
	NextConn    bool   // hit the next new connection instead
	DropCommand bool   // lose the command too
	Point       FaultPoint
	Skip        int // responses to skip for Boundary, else bytes
	Action      Action
}

// stallDuration is the length of a stall, shorter than every time-out.
const stallDuration = 40 * time.Millisecond

// writeTimeout bounds each write, and the connection to the target.
const writeTimeout = 30 * time.Second

// StartFaultProxy listens on a loopback port chosen by the kernel.
func StartFaultProxy(target string) (*FaultProxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &FaultProxy{target: target, listener: l}
	b.wg.Go(b.acceptLoop)
	return b, nil
}

// Address returns the address for the gateway.
func (b *FaultProxy) Address() string { return b.listener.Addr().String() }

// Close closes the listener and all connections and waits for their goroutines.
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

// RefuseNext makes the proxy reset the next n connections.
func (b *FaultProxy) RefuseNext(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusals = n
}

// Disarm removes all faults and refusals that have not happened.
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

// Counts returns the faults so far.
func (b *FaultProxy) Counts() FaultCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.counts
}

// ConnCount returns the number of open connections.
func (b *FaultProxy) ConnCount() int { return len(b.listPairs()) }

// KillAll ends the connections that are between two responses. It skips all others,
// because their clients would see a truncated response.
func (b *FaultProxy) KillAll(do Action) {
	for _, l := range b.listPairs() {
		l.killAtBoundary(do)
	}
}

// KillOne does the same for one connection.
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

// updateCounts updates the counts under the lock.
func (b *FaultProxy) updateCounts(add func(*FaultCounts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	add(&b.counts)
}

// acceptLoop accepts connections until the listener is closed.
func (b *FaultProxy) acceptLoop() {
	for {
		conn, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // the client disconnected before Accept
		}
		b.connectPair(conn.(*net.TCPConn))
	}
}

// connectPair connects a gateway's connection to the backend, or refuses it.
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

// takeArmed returns and clears the armed fault if sent matches it.
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
