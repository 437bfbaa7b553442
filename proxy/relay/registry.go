package relay

import (
	"maps"
	"slices"
	"sync"
	"time"

	"imapgate/internal/event"
)

// Config has the settings of all sessions.
type Config struct {
	IdleTimeout time.Duration        // silence after which a session ends; 0: none
	OnBytes     func(up, down int64) // receives the relayed bytes every second; nil: not reported
}

// Registry holds the live sessions of a gateway.
type Registry struct {
	// Set once.
	Clock *Clock
	cfg   Config
	stop  chan struct{}  // closed by Close
	wakes chan struct{}  // wakes a sleeping clock; holds one element
	wg    sync.WaitGroup // the clock and its goroutines

	mu       sync.Mutex
	sessions map[*Session]struct{} // Guarded by mu.
	active   map[Ticker]*Session   // Guarded by mu. Tickers with a goroutine, and their sessions.
	parked   uint64                // Guarded by mu. Connections that have parked for the first time.
	settled  bool                  // Guarded by mu. A check each second has passed since the last activity.
	sleeping bool                  // Guarded by mu. The clock waits for the next activity.
}

// NewRegistry returns a Registry with a running clock. Close stops it.
func NewRegistry(cfg Config) *Registry {
	r := &Registry{
		Clock: NewClock(), cfg: cfg, stop: make(chan struct{}), wakes: make(chan struct{}, 1),
		sessions: map[*Session]struct{}{}, active: map[Ticker]*Session{}, settled: true,
	}
	r.wg.Add(1)
	go r.runClock()
	return r
}

// Close stops the clock. All sessions must have ended.
func (r *Registry) Close() {
	close(r.stop)
	r.wg.Wait()
}

// Add registers a session, which has no relay yet. onEnd is called once, by Finish.
func (r *Registry) Add(info Info, onEnd func(Result)) *Session {
	s := &Session{info: info, registry: r, onEnd: onEnd, idleTimeout: r.cfg.IdleTimeout, idleReason: event.Idle}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s] = struct{}{}
	return s
}

// remove returns false if it was called before.
func (r *Registry) remove(s *Session) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, found := r.sessions[s]
	delete(r.sessions, s)
	return found
}

// Len returns the number of sessions.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sessions)
}

// Sessions returns all sessions, in no order.
func (r *Registry) Sessions() []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.sessions))
}

// Select returns the sessions that match, in no order.
func (r *Registry) Select(match func(*Info) bool) []*Session {
	return slices.DeleteFunc(r.Sessions(), func(s *Session) bool {
		info := s.Info()
		return !match(&info)
	})
}

// AbortAll aborts all sessions.
func (r *Registry) AbortAll(reason event.Reason) {
	for _, s := range r.Sessions() {
		s.Abort(reason)
	}
}
