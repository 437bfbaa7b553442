package relay

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
)

// fakeRelay is a Relay that records its ends. It ends when asked to, unless it is stuck.
type fakeRelay struct {
	session      *Session
	spliced      bool
	stuck        bool
	commands     uint64
	up, down     atomic.Int64
	lastByte     atomic.Uint32
	ticks        atomic.Int64
	mu           sync.Mutex
	ends, aborts []event.Reason // Guarded by mu.
}

func (f *fakeRelay) End(reason event.Reason) {
	f.mu.Lock()
	f.ends = append(f.ends, reason)
	f.mu.Unlock()
	if !f.stuck {
		f.session.Finish(Result{Reason: reason})
	}
}

func (f *fakeRelay) Abort(reason event.Reason) {
	f.mu.Lock()
	f.aborts = append(f.aborts, reason)
	f.mu.Unlock()
	f.session.Finish(Result{Reason: reason})
}

func (f *fakeRelay) Usage() Usage {
	return Usage{Commands: f.commands, Up: f.up.Load(), Down: f.down.Load(), LastByte: f.lastByte.Load(), Spliced: f.spliced}
}

func (f *fakeRelay) OnTick(uint32) { f.ticks.Add(1) }

// relayBytes counts bytes as a relay does that has just been woken.
func (f *fakeRelay) relayBytes(n int64) {
	f.up.Add(n)
	f.lastByte.Store(f.session.registry.Clock.Update())
}

// start adds a session to r that f relays.
func (f *fakeRelay) start(r *Registry, info Info) *endedSession {
	e := &endedSession{at: make(chan time.Time, 2)}
	f.session = r.Add(info, OwnerFunc(func(result Result) { e.result = result; e.at <- time.Now() }))
	f.lastByte.Store(r.Clock.Update())
	f.session.Start(f)
	return e
}

// endedSession receives the end of a session.
type endedSession struct {
	at     chan time.Time
	result Result
}

// expectEnd requires the session to end after d, exactly to two ticks.
func (e *endedSession) expectEnd(t *testing.T, start time.Time, d time.Duration, want event.Reason) {
	t.Helper()
	at := <-e.at
	if past := at.Sub(start); past < d || past > d+2*Tick || e.result.Reason != want {
		t.Errorf("ended after %v by %s, want %v and %s", past, e.result.Reason, d, want)
	}
}

func inBubble(t *testing.T, cfg Config, test func(t *testing.T, r *Registry)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry(cfg)
		test(t, r)
		r.AbortAll(event.Drained)
		r.Close()
		if n := r.Len(); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

func TestSilentSessionEnds(t *testing.T) {
	inBubble(t, Config{IdleTimeout: 30 * time.Minute}, func(t *testing.T, r *Registry) {
		silent, busy := &fakeRelay{}, &fakeRelay{}
		start := time.Now()
		e := silent.start(r, Info{})
		later := busy.start(r, Info{})
		time.Sleep(20 * time.Minute)
		busy.relayBytes(1)
		e.expectEnd(t, start, 30*time.Minute, event.Idle)
		later.expectEnd(t, start, 50*time.Minute, event.Idle)
	})
}

func TestShortenedIdleTimeoutHasItsReason(t *testing.T) {
	inBubble(t, Config{IdleTimeout: 30 * time.Minute}, func(t *testing.T, r *Registry) {
		f := &fakeRelay{}
		start := time.Now()
		e := f.start(r, Info{})
		time.Sleep(time.Minute)
		f.session.ShortenIdleTimeout(5*time.Minute, event.BackendClosed)
		e.expectEnd(t, start, 5*time.Minute, event.BackendClosed)
	})
}

func TestExpiredSessionEndsAndThenAborts(t *testing.T) {
	inBubble(t, Config{IdleTimeout: time.Hour}, func(t *testing.T, r *Registry) {
		start := time.Now()
		ends, stuck := &fakeRelay{}, &fakeRelay{stuck: true}
		e := ends.start(r, Info{ExpiresAt: start.Add(10 * time.Minute)})
		aborted := stuck.start(r, Info{ExpiresAt: start.Add(10 * time.Minute)})
		e.expectEnd(t, start, 10*time.Minute, event.TokenExpired)
		if at := <-aborted.at; at.Sub(start) < 11*time.Minute || at.Sub(start) > 11*time.Minute+2*time.Second {
			t.Errorf("aborted after %v", at.Sub(start))
		}
		if len(stuck.ends) == 0 || len(stuck.aborts) != 1 {
			t.Errorf("%d ends, %d aborts", len(stuck.ends), len(stuck.aborts))
		}
	})
}

// The clock must not tick for sessions at rest, and what wakes one must not find an old time.
func TestClockSleepsAtRest(t *testing.T) {
	inBubble(t, Config{IdleTimeout: 24 * time.Hour}, func(t *testing.T, r *Registry) {
		f := &fakeRelay{}
		f.start(r, Info{})
		f.session.Activate(f)
		time.Sleep(time.Second + Tick/2)
		f.session.Deactivate(f)
		if n := f.ticks.Load(); n < 19 || n > 21 {
			t.Errorf("%d ticks in a second", n)
		}
		time.Sleep(3 * time.Second)
		before := r.Clock.Now()
		time.Sleep(50 * time.Minute)
		if now := r.Clock.Now(); now != before {
			t.Errorf("the clock ran at rest: %d ticks", now-before)
		}
		f.session.Activate(f)
		if now := r.Clock.Now(); now-before < uint32(50*time.Minute/Tick) {
			t.Errorf("an active session finds a time %d ticks after the rest began", now-before)
		}
		f.session.Deactivate(f)
	})
}

// Sessions that log in and fall silent at once must not leave the memory of their logins.
func TestClockFindsTheEndOfABurstBeforeItSleeps(t *testing.T) {
	inBubble(t, Config{IdleTimeout: 24 * time.Hour}, func(t *testing.T, r *Registry) {
		f := &fakeRelay{}
		f.start(r, Info{})
		f.session.Activate(f)
		time.Sleep(time.Second + Tick/2)
		f.session.CountParked(minParkings)
		f.session.Deactivate(f)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if end := r.burst.lastEnd; end != minParkings {
			t.Errorf("the last burst is taken to have ended at %d parkings", end)
		}
	})
}

func TestClockNeverGoesBack(t *testing.T) {
	c := NewClock()
	c.now.Store(1000)
	if now := c.Update(); now != 1000 {
		t.Errorf("the clock went back to %d", now)
	}
	if Elapsed(5, 7) >= 0 || Elapsed(7, 5) != Tick || Elapsed(1, ^uint32(0)) != Tick {
		t.Error("Elapsed is wrong")
	}
}

func TestBytesAreReportedOnceAndAcrossRelays(t *testing.T) {
	var up atomic.Int64
	inBubble(t, Config{OnBytes: func(n, _ int64) { up.Add(n) }}, func(t *testing.T, r *Registry) {
		first, second := &fakeRelay{}, &fakeRelay{}
		e := first.start(r, Info{})
		s := first.session
		second.session = s
		s.Activate(first)
		first.relayBytes(100)
		time.Sleep(1100 * time.Millisecond)
		if n := up.Load(); n != 100 {
			t.Errorf("%d bytes after a second", n)
		}
		first.relayBytes(10)
		s.Deactivate(first)
		if n := up.Load(); n != 110 {
			t.Errorf("%d bytes at rest", n)
		}
		first.commands = 3
		s.Detach(10)
		s.Start(second)
		second.relayBytes(15)
		s.Abort(event.Drained)
		if <-e.at; e.result.Up != 115 || up.Load() != 115 || e.result.Commands != 3 {
			t.Errorf("%+v; %d bytes were reported", e.result, up.Load())
		}
	})
}

func TestEndBeforeStartApplies(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		f := &fakeRelay{}
		f.session = r.Add(Info{}, OwnerFunc(func(Result) {}))
		f.session.Abort(event.Drained)
		if f.session.Start(f); len(f.ends) != 1 || r.Len() != 0 {
			t.Errorf("ends %v", f.ends)
		}
	})
}

func TestSelectFindsSessions(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		for i := range 4 {
			r.Add(Info{ID: fmt.Sprint(i), Backend: []string{"east", "west"}[i%2]}, OwnerFunc(func(Result) {}))
		}
		var ids []string
		for _, s := range r.Select(Query{Backend: "west"}) {
			ids = append(ids, s.Info().ID)
		}
		if slices.Sort(ids); !slices.Equal(ids, []string{"1", "3"}) {
			t.Errorf("found %v", ids)
		}
		for _, s := range r.Sessions() {
			s.Finish(Result{})
			s.Finish(Result{}) // again
		}
	})
}

// The longest silent sessions end first; spliced ones that are not silent get the whole
// time.
func TestDrainEndsLongestSilentFirst(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		var mu sync.Mutex
		var order []string
		add := func(id string, spliced bool) *fakeRelay {
			f := &fakeRelay{spliced: spliced}
			f.session = r.Add(Info{ID: id}, OwnerFunc(func(Result) {
				mu.Lock()
				order = append(order, id)
				mu.Unlock()
			}))
			f.lastByte.Store(r.Clock.Update())
			f.session.Start(f)
			return f
		}
		for i := range 5 {
			add(fmt.Sprintf("spliced%d", i), true)
			time.Sleep(time.Second)
		}
		for i := range 300 {
			add(fmt.Sprintf("muxed%03d", i), false)
			time.Sleep(Tick)
		}
		busy := add("busy", true)
		start := time.Now()
		drained := make(chan struct{})
		go func() { r.Drain(10 * time.Second); close(drained) }()
		for time.Since(start) < 9900*time.Millisecond {
			busy.relayBytes(1)
			time.Sleep(Tick)
		}
		<-drained
		if past := time.Since(start); past != 10*time.Second || r.Len() != 1 {
			t.Errorf("drained after %v, %d are left", past, r.Len())
		}
		var spliced, muxed []string
		for _, id := range order {
			if id < "n" {
				muxed = append(muxed, id)
			} else {
				spliced = append(spliced, id)
			}
		}
		if !slices.IsSorted(spliced) || len(spliced) != 5 {
			t.Errorf("order: %v", spliced)
		}
		if !slices.IsSortedFunc(muxed, func(a, b string) int { return cmpTens(a, b) }) || len(muxed) != 300 {
			t.Errorf("order: %v", muxed)
		}
	})
}

// cmpTens compares names by their number without the last digit.
func cmpTens(a, b string) int {
	if a, b := a[:len(a)-1], b[:len(b)-1]; a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}
