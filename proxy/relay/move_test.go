package relay

import (
	"sync/atomic"
	"testing"

	"imapgate/internal/event"
)

// fakeMover is a fakeRelay that can move.
type fakeMover struct {
	fakeRelay
	moves atomic.Int64 // calls of OnMove
}

func (f *fakeMover) OnMove() { f.moves.Add(1) }

func TestASessionMovesAndPauses(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		f := &fakeMover{}
		f.session = r.Add(Info{Mode: event.ModeResume}, OwnerFunc(func(Result) {}))
		s := f.session
		s.Start(f)
		if !s.Move() || !s.IsLeaving() || s.Paused() != nil || f.moves.Load() != 1 {
			t.Error("it does not move")
		}
		s.ReportLeft()
		for range 2 {
			if !s.Pause() || !s.IsLeaving() || s.Paused() == nil {
				t.Error("it does not pause")
			}
		}
		s.ReportLeft()
		paused, moves := s.Paused(), f.moves.Load()
		select {
		case <-paused:
			t.Error("the pause has ended")
		default:
		}
		s.Resume()
		<-paused
		s.Resume()
		if s.Paused() != nil || s.IsLeaving() || f.moves.Load() != moves+1 {
			t.Error("it does not resume once")
		}
		s.SetLocation("west", "127.0.0.1:1", "alice")
		if found := r.Select(Query{Backend: "west"}); len(found) != 1 {
			t.Errorf("%d sessions are at the new backend", len(found))
		}
		s.Move()
		s.End(event.Drained)
		if s.IsLeaving() || s.Move() || s.Pause() {
			t.Error("a session that has ended moves")
		}
	})
}

func TestOnlySessionsInModeResumeMove(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		spliced, reused := &fakeRelay{spliced: true}, &fakeMover{}
		spliced.start(r, Info{Mode: event.ModeSplice})
		reused.session = r.Add(Info{Mode: event.ModeReuse}, OwnerFunc(func(Result) {}))
		reused.session.Start(reused)
		pinned := &fakeRelay{spliced: true}
		pinned.start(r, Info{Mode: event.ModeResume})
		for _, s := range r.Sessions() {
			if s.Move() || s.Pause() || s.IsLeaving() || s.Paused() != nil {
				t.Errorf("%+v moves", s.Info())
			}
			s.Resume()
		}
	})
}

// A session is between two relays when it starts and when it is pinned.
func TestAMoveBeforeStartApplies(t *testing.T) {
	for name, ask := range map[string]func(*Session) bool{"move": (*Session).Move, "pause": (*Session).Pause} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, r *Registry) {
				mover := &fakeMover{}
				mover.session = r.Add(Info{Mode: event.ModeResume}, OwnerFunc(func(Result) {}))
				if !ask(mover.session) {
					t.Error("a session cannot move before its start")
				}
				mover.session.Start(mover)
				if !mover.session.IsLeaving() || len(mover.ends) > 0 {
					t.Errorf("leaving %v, ends %v", mover.session.IsLeaving(), mover.ends)
				}
				spliced := &fakeRelay{session: mover.session}
				mover.session.Detach(0)
				mover.session.Start(spliced)
				if len(spliced.ends) != 1 || spliced.ends[0] != event.Moved {
					t.Errorf("ends %v", spliced.ends)
				}
			})
		})
	}
}
