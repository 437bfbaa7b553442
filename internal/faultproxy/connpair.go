package faultproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// connPair is a client's connection and the matching connection to the target.
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

// serve relays until both directions have ended or the pair is reset.
func (l *connPair) serve() {
	defer l.proxy.removePair(l)
	defer l.close()
	if l.hang {
		<-l.done
		return
	}
	conn, err := net.DialTimeout("tcp", l.proxy.target, dialTimeout)
	if err != nil {
		l.reset()
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

// setTarget stores the connection to the target. If the pair is closed it closes target
// and returns false.
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

// interruptReads sets an expired read deadline, so that both directions reload the rules.
func (l *connPair) interruptReads() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.target != nil {
		_ = l.client.SetReadDeadline(time.Unix(1, 0))
		_ = l.target.SetReadDeadline(time.Unix(1, 0))
	}
}

// reset closes both connections with a RST.
func (l *connPair) reset() {
	_ = l.client.SetLinger(0)
	l.mu.Lock()
	if l.target != nil {
		_ = l.target.SetLinger(0)
	}
	l.mu.Unlock()
	l.close()
}

// close closes both connections. It may be called again.
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

// maxChunk bounds the bytes that one direction buffers.
const maxChunk = 32 << 10

// pump moves the bytes of one direction.
type pump struct {
	// Set once.
	pair      *connPair
	direction Direction
	src, dst  *net.TCPConn

	// Owned by run.
	offset       int64           // bytes relayed or discarded so far
	rules        *Rules          // last loaded
	rulesChanged <-chan struct{} // closed when rules is out of date
	nextFault    int             // index in rules.Faults
	discarding   bool            // bytes are read but not relayed
}

// run copies until the source or the pair ends. It passes EOF on as a half-close; any
// other error resets both sides.
func (p *pump) run() {
	buf := make([]byte, maxChunk)
	for {
		if _, ok := p.applyFaults(); !ok { // some faults need no further byte
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

// relay passes b on in chunks and applies the faults between them. It returns false when
// the pair must end. It loads the rules for each chunk, because they may have changed
// during the Read.
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

// loadRules loads the newest rules. It clears the read deadline first, so that the next
// Read sees the deadline set by a later change.
func (p *pump) loadRules() {
	_ = p.src.SetReadDeadline(time.Time{})
	rules, rulesChanged := p.pair.proxy.currentRules(p.direction)
	if rules != p.rules {
		p.rules, p.nextFault, p.discarding = rules, 0, false
	}
	p.rulesChanged = rulesChanged
}

// applyFaults applies every fault whose offset is reached and returns how many bytes may
// pass before the next one. It returns false when the pair must end.
func (p *pump) applyFaults() (int, bool) {
	for p.loadRules(); p.nextFault < len(p.rules.Faults); p.loadRules() {
		f := p.rules.Faults[p.nextFault]
		if distance := f.Offset - p.offset; distance > 0 {
			return int(min(distance, int64(p.rules.chunkSize()))), true
		}
		if f.Action == Corrupt {
			return 1, true // writeChunk corrupts this byte
		}
		if !p.applyFault(f) {
			return 0, false
		}
	}
	return p.rules.chunkSize(), true
}

// applyFault applies a fault that needs no further byte. It returns false when the pair
// must end.
func (p *pump) applyFault(f Fault) bool {
	if f.Action == Stall {
		// Without reads the sender's window closes, until the rules change.
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
		p.discarding = true // unread bytes would make the kernel reset the sender
		return p.dst.CloseWrite() == nil
	case Inject:
		_, err := p.dst.Write(f.Bytes)
		return err == nil
	case Reset:
		return false
	}
	return true
}

// writeChunk writes one chunk with the latency and bandwidth of the rules. It returns
// false when the pair must end.
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

// sleep waits for d. It returns false if the pair ends first.
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
