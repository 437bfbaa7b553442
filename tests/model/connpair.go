package model

import (
	"bytes"
	"net"
	"strconv"
	"sync"
	"time"
)

// connPair is one connection through a Breaker.
type connPair struct {
	// Set once.
	faultProxy               *FaultProxy
	gatewayConn, backendConn *net.TCPConn // the gateway's side, the backend's side

	// Guarded by mu, which is held while bytes are passed to the gateway: what
	// place says is what the gateway has got.
	mu       sync.Mutex
	position streamPosition
	fault    *Fault
	skipped  int // responses or bytes since the fault was claimed
	closed   bool
}

// streamPosition is where in the dialogue a stream of responses is.
type streamPosition struct {
	insideResponse bool   // inside a response
	literalLeft    int    // bytes of a literal that are still to come
	tail           []byte // of the line, as much as a literal's size needs
}

// advance takes one byte; it says whether a response ended with it.
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

// relayToBackend passes what the gateway says; it ends when either side does.
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

// writeToBackend passes a piece to the backend, unless it is lost to a fault.
func (l *connPair) writeToBackend(b []byte) bool {
	if f := l.faultProxy.takeArmed(b); f != nil {
		l.mu.Lock()
		if f.DropCommand && l.position.insideResponse {
			f.DropCommand = false // half a response would be cut off as well
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

// relayToGateway passes what the backend says; it ends when either side does.
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

// writeToGateway passes a piece to the gateway, up to where a fault is due.
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
	_, _ = l.gatewayConn.Write(b[:written]) // who is gone is noticed by up
	return written, due
}

// dueFault is the fault whose place this is. l.mu must be held.
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

// applyFault makes a fault happen; it says whether the link goes on.
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

// killAtBoundary ends the link if the gateway has got only whole responses.
func (l *connPair) killAtBoundary(do Action) {
	l.faultProxy.updateCounts(func(b *FaultCounts) { b.BetweenCommands++ }) // first: who is cut off may ask at once
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.position.insideResponse {
		l.killLocked(do)
	}
}

// kill ends the link. When it returns, the gateway's socket has been told.
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
			_, _ = l.gatewayConn.Write([]byte("* BYE Server shutting down.\r\n")) // it is gone anyway
		}
	case RST:
		_ = l.gatewayConn.SetLinger(0)
	}
	_ = l.gatewayConn.Close()
	_ = l.backendConn.Close()
}
