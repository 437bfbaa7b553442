package breaker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeService is a service that counts checks and answers them with err.
type fakeService struct {
	err     error
	checks  int
	changes []bool
}

func (s *fakeService) newMonitor() *Monitor {
	return NewMonitor(func(context.Context) error { s.checks++; return s.err }, time.Second, func(open bool, _ error) {
		s.changes = append(s.changes, open)
	})
}

func TestFailuresDoNotOpenWhileTheCheckSucceeds(t *testing.T) {
	s := &fakeService{}
	m := s.newMonitor()
	for i := range 100 * Threshold {
		if !m.Allow(t.Context()) {
			t.Fatalf("open after %d requests", i)
		}
		m.RecordFailure()
	}
	if s.checks != 99 || len(s.changes) != 0 {
		t.Errorf("%d checks, changes %v", s.checks, s.changes)
	}
}

func TestOpensWhenTheCheckFailsAndTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeService{err: errors.New("no answer")}
		m := s.newMonitor()
		for range Threshold {
			if !m.Allow(t.Context()) {
				t.Fatal("open at once")
			}
			m.RecordFailure()
		}
		for range 1000 {
			if m.Allow(t.Context()) {
				t.Fatal("not open")
			}
		}
		if s.checks != 1 {
			t.Errorf("%d checks", s.checks)
		}
		for period := range 2 * Threshold { // one client request in each, which fails
			time.Sleep(TrialInterval * 6 / 5)
			for i := range 10 {
				if m.Allow(t.Context()) != (i == 0) || s.checks != 2+period {
					t.Fatalf("%d checks after %d periods, request %d", s.checks, 1+period, i)
				}
			}
			m.RecordFailure()
		}
		s.err = nil
		time.Sleep(TrialInterval * 6 / 5)
		for range 2 {
			if !m.Allow(t.Context()) || s.checks != 2+2*Threshold {
				t.Errorf("not closed: %d checks", s.checks)
			}
		}
		if len(s.changes) != 2 || !s.changes[0] || s.changes[1] {
			t.Errorf("changes %v", s.changes)
		}
	})
}

// A service may answer clients and never the check.
func TestASuccessfulTrialCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeService{err: errors.New("no answer")}
		m := s.newMonitor()
		for range Threshold {
			m.RecordFailure()
		}
		if m.Allow(t.Context()) {
			t.Fatal("not open")
		}
		time.Sleep(TrialInterval * 6 / 5)
		if !m.Allow(t.Context()) || m.Allow(t.Context()) {
			t.Fatal("not exactly one client request is allowed")
		}
		m.RecordSuccess()
		for range 100 {
			if !m.Allow(t.Context()) || s.checks != 2 {
				t.Fatalf("open although the service answers; %d checks", s.checks)
			}
		}
		if len(s.changes) != 2 || !s.changes[0] || s.changes[1] {
			t.Errorf("changes %v", s.changes)
		}
	})
}

// newOpenMonitor returns a Monitor that is open and due for a trial.
func (s *fakeService) newOpenMonitor(t *testing.T, check func(context.Context) error) *Monitor {
	t.Helper()
	m := NewMonitor(func(ctx context.Context) error {
		if s.checks++; s.checks == 1 {
			return s.err
		}
		return check(ctx)
	}, time.Second, func(bool, error) {})
	for range Threshold {
		m.RecordFailure()
	}
	if m.Allow(t.Context()) {
		t.Fatal("not open")
	}
	time.Sleep(TrialInterval * 6 / 5)
	return m
}

func TestWaitingCallersShareTheOutcomeOfATrial(t *testing.T) {
	errNoAnswer := errors.New("no answer")
	for what, c := range map[string]struct {
		own    error // result of check
		client func(*Monitor)
		want   bool
	}{
		"the check is answered":          {nil, func(*Monitor) {}, true},
		"the client request is answered": {errNoAnswer, (*Monitor).RecordSuccess, true},
		"neither is":                     {errNoAnswer, (*Monitor).RecordFailure, false},
		"undecided":                      {errNoAnswer, func(*Monitor) {}, false}, // the client has left
	} {
		synctest.Test(t, func(t *testing.T) {
			answer := make(chan error)
			s := &fakeService{err: errNoAnswer}
			m := s.newOpenMonitor(t, func(context.Context) error { return <-answer })
			var callers, trial sync.WaitGroup
			trial.Go(func() {
				m.Allow(t.Context())
				c.client(m)
			})
			synctest.Wait()
			var allowed, rejected atomic.Int32
			for range MaxWaiting + 3 {
				callers.Go(func() {
					switch began := time.Now(); {
					case m.Allow(t.Context()):
						t.Error("a second trial")
					case m.AwaitTrial(t.Context()):
						allowed.Add(1)
					case time.Since(began) == 0:
						rejected.Add(1)
					}
				})
			}
			synctest.Wait()
			if rejected.Load() != 3 || m.waiting != MaxWaiting {
				t.Errorf("%s: %d did not wait, %d do", what, rejected.Load(), m.waiting)
			}
			time.Sleep(time.Second / 10)
			answer <- c.own
			trial.Wait()
			callers.Wait()
			if want := map[bool]int32{true: MaxWaiting}[c.want]; allowed.Load() != want || m.waiting != 0 {
				t.Errorf("%s: %d allowed, %d wait", what, allowed.Load(), m.waiting)
			}
		})
	}
}

func TestCallersDoNotWaitWithoutATrial(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fakeService{err: errors.New("no answer")}
		m := s.newOpenMonitor(t, func(context.Context) error { return s.err })
		m.Allow(t.Context())
		m.RecordFailure()
		began := time.Now()
		if m.Allow(t.Context()) || m.AwaitTrial(t.Context()) || time.Since(began) != 0 {
			t.Errorf("waited %v", time.Since(began))
		}
		time.Sleep(TrialInterval * 6 / 5)
		m.Allow(t.Context()) // its client sends nothing
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		if began = time.Now(); m.AwaitTrial(ctx) || time.Since(began) != time.Second/4 {
			t.Errorf("waited %v for a client that had left", time.Since(began))
		}
	})
}

func TestACanceledCallerDoesNotEndTheCheck(t *testing.T) {
	s := &fakeService{}
	m := NewMonitor(func(ctx context.Context) error { s.checks++; return ctx.Err() }, time.Minute, func(bool, error) { t.Error("the state changed") })
	for range Threshold {
		m.RecordFailure()
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if !m.Allow(canceled) || s.checks != 1 {
		t.Error("the check ended with its caller")
	}
}
