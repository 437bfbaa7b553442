package model

import (
	"bytes"
	"net"
	"strconv"
	"sync"
	"time"
)

// connPair is one connection through a FaultProxy.
type connPair struct {
	// Set once.
	faultProxy               *FaultProxy
	gatewayConn, backendConn *net.TCPConn

	// Guarded by mu, which is held while bytes are written to the gateway, so that
	// position is what the gateway has received.
	mu       sync.Mutex
	position streamPosition
	fault    *Fault
	skipped  int // responses or bytes since the fault was assigned
	closed   bool
}

// streamPosition is the position in a stream of responses.
type streamPosition struct {
	insideResponse bool
	literalLeft    int    // bytes of the literal not yet received
	tail           []byte // last 16 bytes of the line, for the size of a literal
}

// advance consumes one byte and reports whether it ends a response.
func (p *streamPosition) advance(c byte) bool {
	if p.literalLeft > 0 {
		p.literalLeft--
		return false
	}
	p.insideResponse = true
	if len(p.tail) == 16 {
		p.tail = append(p.tail[:0], p.tail[1:]...)
	}
	p.tail = append(p.tail, c)
	if c != '\n' {
		return false
	}
	line, hasMarker := bytes.CutSuffix(p.tail, []byte("}\r\n"))
	p.tail = p.tail[:0]
	if i := bytes.LastIndexByte(line, '{'); hasMarker && i >= 0 {
		if n, err := strconv.Atoi(string(line[i+1:])); err == nil && n >= 0 {
			p.literalLeft = n
			return false
		}
	}
	p.insideResponse = false
	return true
}

// relayToBackend relays commands until either side closes.
func (l *connPair) relayToBackend() {
	buf := make([]byte, 16<<10)
	for {
		n, err := l.gatewayConn.Read(buf)
		if n > 0 && !l.writeToBackend(buf[:n]) {
			return
		}
		if err != nil {
			l.kill(FIN)
			return
		}
	}
}

// writeToBackend writes b to the backend, unless a fault drops it. It returns false when
// the pair has ended.
func (l *connPair) writeToBackend(b []byte) bool {
	if f := l.faultProxy.takeArmed(b); f != nil {
		l.mu.Lock()
		if f.DropCommand && l.position.insideResponse {
			f.DropCommand = false // dropping it would also truncate a response
		}
		l.fault, l.skipped = f, 0
		l.mu.Unlock()
		if f.DropCommand {
			l.applyFault(f)
			return false
		}
	}
	_ = l.backendConn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := l.backendConn.Write(b)
	return err == nil
}

// relayToGateway relays responses until either side closes.
func (l *connPair) relayToGateway() {
	defer l.faultProxy.removePair(l)
	buf := make([]byte, 16<<10)
	for {
		n, err := l.backendConn.Read(buf)
		for b := buf[:n]; len(b) > 0; {
			written, due := l.writeToGateway(b)
			if due != nil && !l.applyFault(due) {
				return
			}
			b = b[written:]
		}
		if err != nil {
			l.kill(FIN)
			return
		}
	}
}

// writeToGateway writes b to the gateway, up to the position at which a fault is due.
func (l *connPair) writeToGateway(b []byte) (written int, due *Fault) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for written < len(b) && due == nil {
		if due = l.dueFault(); due == nil {
			complete := l.position.advance(b[written])
			if l.fault != nil && (l.fault.Point != Boundary && (l.fault.Point == InLine || l.position.literalLeft > 0) || complete && l.fault.Point == Boundary) {
				l.skipped++
			}
			written++
		}
	}
	_ = l.gatewayConn.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, _ = l.gatewayConn.Write(b[:written]) // relayToBackend detects a closed gateway
	return written, due
}

// dueFault returns the fault if its position is reached. l.mu must be held.
func (l *connPair) dueFault() *Fault {
	f := l.fault
	if f == nil || l.skipped < f.Skip {
		return nil
	}
	switch {
	case f.Point == Boundary && l.position.insideResponse,
		f.Point == InLine && (!l.position.insideResponse || l.position.literalLeft > 0),
		f.Point == InLiteral && l.position.literalLeft == 0:
		return nil
	}
	l.fault = nil
	return f
}

// applyFault applies a fault and reports whether the pair stays open.
func (l *connPair) applyFault(f *Fault) bool {
	l.faultProxy.updateCounts(func(b *FaultCounts) {
		switch {
		case f.Action == Stall:
			b.Stalled++
		case f.Point == Boundary:
			b.InFlight++
		default:
			b.InsideResponse++
		}
	})
	if f.Action == Stall {
		<-time.After(stallDuration)
		return true
	}
	l.kill(f.Action)
	return false
}

// killAtBoundary ends the pair if the gateway has received only complete responses.
func (l *connPair) killAtBoundary(do Action) {
	l.faultProxy.updateCounts(func(b *FaultCounts) { b.BetweenCommands++ }) // before a client can see the loss
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.position.insideResponse {
		l.killLocked(do)
	}
}

// kill ends the pair. When it returns, both connections are closed.
func (l *connPair) kill(do Action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killLocked(do)
}

func (l *connPair) killLocked(do Action) {
	if l.closed {
		return
	}
	l.closed = true
	switch do {
	case Bye:
		if !l.position.insideResponse {
			_, _ = l.gatewayConn.Write([]byte("* BYE Server shutting down.\r\n")) // closed next anyway
		}
	case RST:
		_ = l.gatewayConn.SetLinger(0)
	}
	_ = l.gatewayConn.Close()
	_ = l.backendConn.Close()
}
