package faultproxy

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// link is one client's connection and the one made for it to the target.
type link struct {
	// Set once.
	proxy  *Proxy
	mute   bool
	client *net.TCPConn
	gone   chan struct{} // closed by reset

	// Guarded by mu.
	mu     sync.Mutex
	target *net.TCPConn // nil until connected
	ended  bool
}

// serve is one link's life; it ends when both directions have, or by reset.
func (l *link) serve() {
	defer l.proxy.forget(l)
	defer l.close()
	if l.mute {
		<-l.gone
		return
	}
	conn, err := net.DialTimeout("tcp", l.proxy.target, dialTime)
	if err != nil {
		l.reset() // a client of an unreachable target sees a broken connection
		return
	}
	if !l.connected(conn.(*net.TCPConn)) {
		return
	}
	back := pump{link: l, way: ToClient, src: l.target, dst: l.client}
	forth := pump{link: l, way: ToTarget, src: l.client, dst: l.target}
	var other sync.WaitGroup
	other.Go(back.run)
	forth.run()
	other.Wait()
}

// connected keeps the connection to the target, unless the link has ended.
func (l *link) connected(target *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		_ = target.Close()
		return false
	}
	l.target = target
	return true
}

// wake makes both directions look at the rules again, by a deadline that has
// passed.
func (l *link) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.target != nil {
		_ = l.client.SetReadDeadline(time.Unix(1, 0))
		_ = l.target.SetReadDeadline(time.Unix(1, 0))
	}
}

// reset ends both connections with a RST.
func (l *link) reset() {
	_ = l.client.SetLinger(0)
	l.mu.Lock()
	if l.target != nil {
		_ = l.target.SetLinger(0)
	}
	l.mu.Unlock()
	l.close()
}

// close ends both connections. It may be called again.
func (l *link) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	l.ended = true
	close(l.gone)
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
	link     *link
	way      Direction
	src, dst *net.TCPConn

	// Owned by run.
	offset  int64           // bytes passed or lost so far
	rules   *Rules          // those of the last look
	changed <-chan struct{} // closed when there are newer ones
	next    int             // the fault of rules that is next
	lost    bool            // what is read is thrown away
}

// run copies until the source ends or the link does. An end of the source is
// passed on as one; anything worse resets both sides.
func (p *pump) run() {
	buf := make([]byte, maxChunk)
	for {
		if _, ok := p.strike(); !ok { // a fault may be due without a byte
			p.link.reset()
			return
		}
		n, err := p.src.Read(buf)
		if !p.pass(buf[:n]) {
			p.link.reset()
			return
		}
		var timeout net.Error
		switch {
		case err == nil, errors.As(err, &timeout) && timeout.Timeout():
		case errors.Is(err, io.EOF):
			if !p.lost {
				_ = p.dst.CloseWrite()
			}
			return
		default:
			p.link.reset()
			return
		}
	}
}

// pass takes what was read through the faults, piece by piece. It answers false
// when the link must end. The rules are looked at for each piece: those that
// stand when Read returns may be newer than when it was called.
func (p *pump) pass(b []byte) bool {
	for len(b) > 0 {
		n, ok := p.strike()
		if !ok {
			return false
		}
		n = min(n, len(b))
		if !p.forward(b[:n]) {
			return false
		}
		p.offset += int64(n)
		b = b[n:]
	}
	return true
}

// look takes the newest rules. The deadline is cleared first: one that a later
// change sets must be seen by the Read that follows.
func (p *pump) look() {
	_ = p.src.SetReadDeadline(time.Time{})
	rules, changed := p.link.proxy.current(p.way)
	if rules != p.rules {
		p.rules, p.next, p.lost = rules, 0, false
	}
	p.changed = changed
}

// strike makes every fault happen whose byte has come, and says how many bytes
// may be passed before the next one. It answers false when the link must end.
func (p *pump) strike() (int, bool) {
	for p.look(); p.next < len(p.rules.Faults); p.look() {
		f := p.rules.Faults[p.next]
		if ahead := f.At - p.offset; ahead > 0 {
			return int(min(ahead, int64(p.rules.chunk()))), true
		}
		if f.Do == Corrupt {
			return 1, true // forward does it, to this one byte
		}
		if !p.happen(f) {
			return 0, false
		}
	}
	return p.rules.chunk(), true
}

// happen makes a fault happen that needs no byte to come. It answers false when
// the link must end.
func (p *pump) happen(f Fault) bool {
	if f.Do == Stall {
		// Nothing is read, so the sender's window closes. New rules end it.
		select {
		case <-p.changed:
			return true
		case <-p.link.gone:
			return false
		}
	}
	p.next++
	switch f.Do {
	case Blackhole:
		p.lost = true
	case HalfClose:
		p.lost = true // what still comes is read, or the sender would be reset
		return p.dst.CloseWrite() == nil
	case Inject:
		_, err := p.dst.Write(f.Bytes)
		return err == nil
	case Reset:
		return false
	}
	return true
}

// forward writes one piece, late or slowly as the rules say. It answers false
// when the link must end.
func (p *pump) forward(b []byte) bool {
	if p.next < len(p.rules.Faults) {
		if f := p.rules.Faults[p.next]; f.Do == Corrupt && f.At <= p.offset {
			b[0] ^= 0xff
			p.next++
		}
	}
	if p.lost {
		return true
	}
	if !p.pause(p.rules.Latency) {
		return false
	}
	if _, err := p.dst.Write(b); err != nil {
		return false
	}
	if p.rules.Bandwidth > 0 {
		return p.pause(time.Duration(len(b)) * time.Second / time.Duration(p.rules.Bandwidth))
	}
	return true
}

// pause waits, unless the link ends.
func (p *pump) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.link.gone:
		return false
	}
}
