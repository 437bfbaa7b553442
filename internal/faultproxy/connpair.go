package faultproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// connPair is one client's connection and the one made for it to the target.
type connPair struct {
	// Set once.
	proxy  *Proxy
	hang   bool
	client *net.TCPConn
	done   chan struct{} // closed by reset

	// Guarded by mu.
	mu     sync.Mutex
	target *net.TCPConn // nil until connected
	closed bool
}

// serve is one link's life; it ends when both directions have, or by reset.
func (l *connPair) serve() {
	defer l.proxy.removePair(l)
	defer l.close()
	if l.hang {
		<-l.done
		return
	}
	conn, err := net.DialTimeout("tcp", l.proxy.target, dialTimeout)
	if err != nil {
		l.reset() // a client of an unreachable target sees a broken connection
		return
	}
	if !l.setTarget(conn.(*net.TCPConn)) {
		return
	}
	toClient := pump{pair: l, direction: ToClient, src: l.target, dst: l.client}
	toTarget := pump{pair: l, direction: ToTarget, src: l.client, dst: l.target}
	var wg sync.WaitGroup
	wg.Go(toClient.run)
	toTarget.run()
	wg.Wait()
}

// setTarget keeps the connection to the target, unless the link has ended.
func (l *connPair) setTarget(target *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		_ = target.Close()
		return false
	}
	l.target = target
	return true
}

// interruptReads makes both directions look at the rules again, by a deadline that has
// passed.
func (l *connPair) interruptReads() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.target != nil {
		_ = l.client.SetReadDeadline(time.Unix(1, 0))
		_ = l.target.SetReadDeadline(time.Unix(1, 0))
	}
}

// reset ends both connections with a RST.
func (l *connPair) reset() {
	_ = l.client.SetLinger(0)
	l.mu.Lock()
	if l.target != nil {
		_ = l.target.SetLinger(0)
	}
	l.mu.Unlock()
	l.close()
}

// close ends both connections. It may be called again.
func (l *connPair) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	l.closed = true
	close(l.done)
	_ = l.client.Close()
	if l.target != nil {
		_ = l.target.Close()
	}
}

// maxChunk bounds what one direction holds.
const maxChunk = 32 << 10

// pump moves the bytes of one direction.
type pump struct {
	// Set once.
	pair      *connPair
	direction Direction
	src, dst  *net.TCPConn

	// Owned by run.
	offset       int64           // bytes passed or lost so far
	rules        *Rules          // those of the last look
	rulesChanged <-chan struct{} // closed when there are newer ones
	nextFault    int             // the fault of rules that is next
	discarding   bool            // what is read is thrown away
}

// run copies until the source ends or the link does. An end of the source is
// passed on as one; anything worse resets both sides.
func (p *pump) run() {
	buf := make([]byte, maxChunk)
	for {
		if _, ok := p.applyFaults(); !ok { // a fault may be due without a byte
			p.pair.reset()
			return
		}
		n, err := p.src.Read(buf)
		if !p.relay(buf[:n]) {
			p.pair.reset()
			return
		}
		var timeout net.Error
		switch {
		case err == nil, errors.As(err, &timeout) && timeout.Timeout():
		case errors.Is(err, io.EOF):
			if !p.discarding {
				_ = p.dst.CloseWrite()
			}
			return
		default:
			p.pair.reset()
			return
		}
	}
}

// relay takes what was read through the faults, piece by piece. It answers false
// when the link must end. The rules are looked at for each piece: those that
// stand when Read returns may be newer than when it was called.
func (p *pump) relay(b []byte) bool {
	for len(b) > 0 {
		n, ok := p.applyFaults()
		if !ok {
			return false
		}
		n = min(n, len(b))
		if !p.writeChunk(b[:n]) {
			return false
		}
		p.offset += int64(n)
		b = b[n:]
	}
	return true
}

// loadRules takes the newest rules. The deadline is cleared first: one that a later
// change sets must be seen by the Read that follows.
func (p *pump) loadRules() {
	_ = p.src.SetReadDeadline(time.Time{})
	rules, rulesChanged := p.pair.proxy.currentRules(p.direction)
	if rules != p.rules {
		p.rules, p.nextFault, p.discarding = rules, 0, false
	}
	p.rulesChanged = rulesChanged
}

// applyFaults makes every fault happen whose byte has come, and says how many bytes
// may be passed before the next one. It answers false when the link must end.
func (p *pump) applyFaults() (int, bool) {
	for p.loadRules(); p.nextFault < len(p.rules.Faults); p.loadRules() {
		f := p.rules.Faults[p.nextFault]
		if distance := f.Offset - p.offset; distance > 0 {
			return int(min(distance, int64(p.rules.chunkSize()))), true
		}
		if f.Action == Corrupt {
			return 1, true // forward does it, to this one byte
		}
		if !p.applyFault(f) {
			return 0, false
		}
	}
	return p.rules.chunkSize(), true
}

// applyFault makes a fault happen that needs no byte to come. It answers false when
// the link must end.
func (p *pump) applyFault(f Fault) bool {
	if f.Action == Stall {
		// Nothing is read, so the sender's window closes. New rules end it.
		select {
		case <-p.rulesChanged:
			return true
		case <-p.pair.done:
			return false
		}
	}
	p.nextFault++
	switch f.Action {
	case Blackhole:
		p.discarding = true
	case HalfClose:
		p.discarding = true // what still comes is read, or the sender would be reset
		return p.dst.CloseWrite() == nil
	case Inject:
		_, err := p.dst.Write(f.Bytes)
		return err == nil
	case Reset:
		return false
	}
	return true
}

// writeChunk writes one piece, late or slowly as the rules say. It answers false
// when the link must end.
func (p *pump) writeChunk(b []byte) bool {
	if p.nextFault < len(p.rules.Faults) {
		if f := p.rules.Faults[p.nextFault]; f.Action == Corrupt && f.Offset <= p.offset {
			b[0] ^= 0xff
			p.nextFault++
		}
	}
	if p.discarding {
		return true
	}
	if !p.sleep(p.rules.Latency) {
		return false
	}
	if _, err := p.dst.Write(b); err != nil {
		return false
	}
	if p.rules.Bandwidth > 0 {
		return p.sleep(time.Duration(len(b)) * time.Second / time.Duration(p.rules.Bandwidth))
	}
	return true
}

// sleep waits, unless the link ends.
func (p *pump) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.pair.done:
		return false
	}
}
