package splice

import (
	"runtime/debug"
	"time"

	"imapgate/internal/quiet"
)

// The clock's pace. Quiet pumps are noticed within a tick; sessions are looked
// at for their longer time-outs, and bytes reported, every sweep.
const (
	tick  = 50 * time.Millisecond
	sweep = 20 // ticks: 1 s
)

func ticks(d time.Duration) uint32 { return uint32((d + tick - 1) / tick) }

// clock is the one timer of all sessions. It ends when the Set closes.
func (s *Set) clock() {
	defer s.wg.Done()
	t := time.NewTicker(tick)
	defer t.Stop()
	var logins quiet.Burst
	for {
		select {
		case <-s.stop:
			return
		case <-t.C:
		}
		now := s.tick.Add(1)
		s.askQuiet(now)
		if now%sweep == 0 {
			s.sweep(now)
			if logins.Over(s.parkings.Load(), s.Len()) {
				s.wg.Go(debug.FreeOSMemory) // it takes a collection's time
			}
		}
	}
}

// askQuiet asks the pumps that have had nothing to do to park.
func (s *Set) askQuiet(now uint32) {
	if !quiet.CanPark {
		return
	}
	var quiet []*pump
	s.mu.Lock()
	for p := range s.pumps {
		if !p.writing.Load() && p.silence(now) >= s.cfg.Quiet {
			quiet = append(quiet, p)
		}
	}
	s.mu.Unlock()
	for _, p := range quiet {
		p.ask()
	}
}

// sweep ends the sessions whose time is over.
func (s *Set) sweep(now uint32) {
	for _, r := range s.overdue(time.Now()) {
		s.wg.Go(func() { r.End(Expired) }) // as in expire
	}
	for _, r := range s.all() {
		r.report()
		r.expire(now)
	}
	if s.cfg.Parked != nil {
		s.cfg.Parked(s.idle.Len())
	}
}

// overdue are the sessions that were to go on until now.
func (s *Set) overdue(now time.Time) (over []*Relay) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, until := range s.until {
		if !now.Before(until) {
			over = append(over, r)
		}
	}
	return over
}

// unanswered is how long a client may stay whose backend has hung up: it has
// been told, and whatever it says now nobody answers.
const unanswered = 5 * time.Second

// expire ends the session if a write has been stuck, or nothing has moved, for
// too long.
func (r *Relay) expire(now uint32) {
	cfg := &r.set.cfg
	for _, p := range [...]*pump{&r.up, &r.down} {
		// A pump that was asked to park and has not is in a write too.
		if (p.writing.Load() || p.state.Load() == asked) && p.silence(now) >= cfg.Write {
			why := BackendStalled
			if p == &r.down {
				why = ClientStalled
			}
			r.cut(why, nil)
			return
		}
	}
	r.mu.Lock()
	limit, why := cfg.Idle, Idle
	if r.open == 1 {
		limit, why = min(cfg.HalfClosed, cfg.Idle), r.result.Reason
		if why == BackendClosed {
			limit = min(limit, unanswered)
		}
	}
	r.mu.Unlock()
	if r.up.silence(now) >= limit && r.down.silence(now) >= limit {
		// Saying goodbye can wait for a full socket; the clock can't.
		r.set.wg.Go(func() { r.End(why) })
	}
}
