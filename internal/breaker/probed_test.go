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

// service is what a Probed is about: its owner's questions count and are
// answered as err says.
type service struct {
	err   error
	asked int
	told  []bool
}

func (s *service) breaker() *Probed {
	return NewProbed(func(context.Context) error { s.asked++; return s.err }, time.Second, func(open bool, _ error) {
		s.told = append(s.told, open)
	})
}

func TestQuestionsWithoutAnAnswerOpenNothingWhileTheServiceAnswersAnother(t *testing.T) {
	s := &service{}
	p := s.breaker()
	for i := range 100 * After {
		if !p.Allow(t.Context()) {
			t.Fatalf("left alone after %d questions", i)
		}
		p.Failed()
	}
	if s.asked != 99 || len(s.told) != 0 {
		t.Errorf("asked %d questions of its own, told %v", s.asked, s.told)
	}
}

func TestAServiceThatAnswersNothingIsLeftAloneAndAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{err: errors.New("no answer")}
		p := s.breaker()
		for range After {
			if !p.Allow(t.Context()) {
				t.Fatal("left alone at once")
			}
			p.Failed()
		}
		for range 1000 {
			if p.Allow(t.Context()) {
				t.Fatal("not left alone")
			}
		}
		if s.asked != 1 {
			t.Errorf("asked %d times", s.asked)
		}
		for period := range 2 * After { // one question of a client's in each, which decides nothing
			time.Sleep(For * 6 / 5)
			for i := range 10 {
				if p.Allow(t.Context()) != (i == 0) || s.asked != 2+period {
					t.Fatalf("asked %d times after %d pauses, question %d", s.asked, 1+period, i)
				}
			}
			p.Failed()
		}
		s.err = nil
		time.Sleep(For * 6 / 5)
		for range 2 {
			if !p.Allow(t.Context()) || s.asked != 2+2*After {
				t.Errorf("not asked again: %d", s.asked)
			}
		}
		if len(s.told) != 2 || !s.told[0] || s.told[1] {
			t.Errorf("told %v", s.told)
		}
	})
}

// A service that answers clients and never the gateway's own question.
func TestAClientsAnswerEndsTheTimeAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{err: errors.New("no answer")}
		p := s.breaker()
		for range After {
			p.Failed()
		}
		if p.Allow(t.Context()) {
			t.Fatal("not left alone")
		}
		time.Sleep(For * 6 / 5)
		if !p.Allow(t.Context()) || p.Allow(t.Context()) {
			t.Fatal("not one question of a client's goes through")
		}
		p.Answered()
		for range 100 {
			if !p.Allow(t.Context()) || s.asked != 2 {
				t.Fatalf("left alone although it answers; asked %d times", s.asked)
			}
		}
		if len(s.told) != 2 || !s.told[0] || s.told[1] {
			t.Errorf("told %v", s.told)
		}
	})
}

// leftAlone is a Probed that is open, and due for a probe.
func (s *service) leftAlone(t *testing.T, ask func(context.Context) error) *Probed {
	t.Helper()
	p := NewProbed(func(ctx context.Context) error {
		if s.asked++; s.asked == 1 {
			return s.err
		}
		return ask(ctx)
	}, time.Second, func(bool, error) {})
	for range After {
		p.Failed()
	}
	if p.Allow(t.Context()) {
		t.Fatal("not left alone")
	}
	time.Sleep(For * 6 / 5)
	return p
}

func TestCallersBesideAProbeShareItsOutcome(t *testing.T) {
	no := errors.New("no answer")
	for what, c := range map[string]struct {
		own    error // of the gateway's own question
		client func(*Probed)
		want   bool
	}{
		"the gateway's own is answered": {nil, func(*Probed) {}, true},
		"the client's is answered":      {no, (*Probed).Answered, true},
		"neither is":                    {no, (*Probed).Failed, false},
		"nobody says":                   {no, func(*Probed) {}, false}, // the client is gone
	} {
		synctest.Test(t, func(t *testing.T) {
			answer := make(chan error)
			s := &service{err: no}
			p := s.leftAlone(t, func(context.Context) error { return <-answer })
			var callers, prober sync.WaitGroup
			prober.Go(func() {
				p.Allow(t.Context())
				c.client(p)
			})
			synctest.Wait()
			var yes, beyond atomic.Int32
			for range MaxBeside + 3 {
				callers.Go(func() {
					switch began := time.Now(); {
					case p.Allow(t.Context()):
						t.Error("a second probe")
					case p.Await(t.Context()):
						yes.Add(1)
					case time.Since(began) == 0:
						beyond.Add(1)
					}
				})
			}
			synctest.Wait()
			if beyond.Load() != 3 || p.beside != MaxBeside {
				t.Errorf("%s: %d did not wait, %d do", what, beyond.Load(), p.beside)
			}
			time.Sleep(time.Second / 10)
			answer <- c.own
			prober.Wait()
			callers.Wait()
			if want := map[bool]int32{true: MaxBeside}[c.want]; yes.Load() != want || p.beside != 0 {
				t.Errorf("%s: %d go on, %d wait", what, yes.Load(), p.beside)
			}
		})
	}
}

func TestNobodyWaitsWhileNobodyProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &service{err: errors.New("no answer")}
		p := s.leftAlone(t, func(context.Context) error { return s.err })
		p.Allow(t.Context())
		p.Failed()
		began := time.Now()
		if p.Allow(t.Context()) || p.Await(t.Context()) || time.Since(began) != 0 {
			t.Errorf("waited %v", time.Since(began))
		}
		time.Sleep(For * 6 / 5)
		p.Allow(t.Context()) // and its client is silent
		gone, cancel := context.WithTimeout(t.Context(), time.Second/4)
		defer cancel()
		if began = time.Now(); p.Await(gone) || time.Since(began) != time.Second/4 {
			t.Errorf("waited %v for a client that was gone", time.Since(began))
		}
	})
}

func TestACallerThatLeavesDecidesNothing(t *testing.T) {
	s := &service{}
	p := NewProbed(func(ctx context.Context) error { s.asked++; return ctx.Err() }, time.Minute, func(bool, error) { t.Error("told") })
	for range After {
		p.Failed()
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if !p.Allow(gone) || s.asked != 1 {
		t.Error("the gateway's own question ended with its caller")
	}
}
