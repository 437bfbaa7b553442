package relay

import "imapgate/internal/event"

// Mover is a Relay that can leave its backend connection and take another.
type Mover interface {
	Relay
	// OnMove makes the relay follow Session.IsLeaving and Session.Paused. It does not block.
	OnMove()
}

// pause lasts from a Pause to the next Resume.
type pause struct{ ended chan struct{} }

// Move asks the session to leave its backend connection at its next quiet moment, and to ask
// for the user's route before it takes another one. The client notices nothing. It is for
// moves after which the route leads to the same mail. If it leads to a backend that cannot
// continue the session, the session ends as moved.
//
// A quiet moment is one without an outstanding command, and with all of the client's view
// known. A long answer or an upload delays it. So does a backend that withholds expunges, and
// a large mailbox whose mod-sequence the client does not have yet: until the client's next
// command or IDLE. IsLeaving reports whether the session is still there.
//
// Move returns false for a session that cannot leave. The caller must End that one. A
// session that becomes such a one before it has left ends as moved.
func (s *Session) Move() bool {
	s.mu.Lock()
	mover, ok := s.mover()
	if ok {
		s.leaving.Store(true)
	}
	s.mu.Unlock()
	if mover != nil {
		mover.OnMove()
	}
	return ok
}

// Pause is Move, after which the session takes no backend connection until Resume. A command
// waits for Resume as it does for a backend that is down, for command_hold_timeout. An IDLE
// stays up without a bound of its own. Pause does not end by itself: the caller bounds it.
func (s *Session) Pause() bool {
	s.mu.Lock()
	_, ok := s.mover()
	if ok {
		s.pause.CompareAndSwap(nil, &pause{make(chan struct{})}) // before Move: a session that has left must find it
	}
	s.mu.Unlock()
	return ok && s.Move()
}

// Resume ends a Pause, and wakes what waits for that.
func (s *Session) Resume() {
	s.mu.Lock()
	p := s.pause.Swap(nil)
	mover, _ := s.mover()
	s.mu.Unlock()
	if p == nil {
		return
	}
	close(p.ended)
	if mover != nil {
		mover.OnMove()
	}
}

// mover returns the relay, nil if there is none now, and whether the session can move. mu is
// held.
func (s *Session) mover() (Mover, bool) {
	mover, ok := s.relay.(Mover)
	return mover, !s.ended && s.info.Mode == event.ModeResume && (ok || s.relay == nil)
}

// IsLeaving reports whether the session still has the connection that a Move or Pause asks it
// to leave.
func (s *Session) IsLeaving() bool { return s.leaving.Load() }

// ReportLeft is called by the relay when it has left.
func (s *Session) ReportLeft() { s.leaving.Store(false) }

// Paused returns a channel that the next Resume closes; nil if the session is not paused.
func (s *Session) Paused() <-chan struct{} {
	if p := s.pause.Load(); p != nil {
		return p.ended
	}
	return nil
}
