package proxy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/proxy/mux"
)

// SessionRoute is where sessions of a user are relayed to: a backend, the login name there
// and a mode. A session keeps the values it was admitted with, also after it is pinned.
type SessionRoute struct {
	Backend string     `json:"backend"`
	Login   string     `json:"login"`
	Mode    event.Mode `json:"mode"`
}

// SessionCount is the number of a user's live sessions with one SessionRoute.
type SessionCount struct {
	SessionRoute
	Count int `json:"count"`
}

// sessionTable counts the live sessions of each user at this gateway.
type sessionTable struct {
	mu    sync.Mutex
	users map[identity.User][]SessionCount // Guarded by mu. No count is 0, no list is empty.
}

func newSessionTable() *sessionTable { return &sessionTable{users: map[identity.User][]SessionCount{}} }

// add counts one more session.
func (t *sessionTable) add(user identity.User, route SessionRoute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := t.users[user]
	if i := indexOf(counts, route); i >= 0 {
		counts[i].Count++
		return
	}
	t.users[user] = append(counts, SessionCount{route, 1})
}

// remove uncounts a session that add has counted.
func (t *sessionTable) remove(user identity.User, route SessionRoute) {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := t.users[user]
	i := indexOf(counts, route)
	if counts[i].Count--; counts[i].Count > 0 {
		return
	}
	if counts = slices.Delete(counts, i, i+1); len(counts) == 0 {
		delete(t.users, user)
		return
	}
	t.users[user] = counts
}

// countsOf returns the counts of a user, sorted; it is empty for a user without sessions.
func (t *sessionTable) countsOf(user identity.User) []SessionCount {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts := slices.Clone(t.users[user])
	slices.SortFunc(counts, func(a, b SessionCount) int {
		return cmp.Or(strings.Compare(a.Backend, b.Backend), strings.Compare(a.Login, b.Login), cmp.Compare(a.Mode, b.Mode))
	})
	return counts
}

// countByBackend counts the sessions at each backend by mode.
func (t *sessionTable) countByBackend() map[string]map[event.Mode]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string]map[event.Mode]int{}
	for _, counts := range t.users {
		for _, c := range counts {
			if all[c.Backend] == nil {
				all[c.Backend] = map[event.Mode]int{}
			}
			all[c.Backend][c.Mode] += c.Count
		}
	}
	return all
}

func indexOf(counts []SessionCount, route SessionRoute) int {
	return slices.IndexFunc(counts, func(c SessionCount) bool { return c.SessionRoute == route })
}

// SessionsOf returns the live sessions of a user at this gateway by route. Sessions stay on
// their route until they end, even if the route changes.
func (s *Server) SessionsOf(user identity.User) []SessionCount { return s.sessions.countsOf(user) }

// BackendState is the state of a backend at this gateway.
type BackendState struct {
	Name     string             `json:"name"`
	Mode     event.Mode         `json:"mode"`     // of sessions whose route names none
	Sessions map[event.Mode]int `json:"sessions"` // live sessions, by the mode they were admitted in
	mux.ViolationStatus
}

// Backends returns all backends, sorted by name.
func (s *Server) Backends() []BackendState {
	sessions := s.sessions.countByBackend()
	all := make([]BackendState, 0, len(s.deps.Backends))
	for _, name := range slices.Sorted(maps.Keys(s.deps.Backends)) {
		b := BackendState{Name: name, Mode: cmp.Or(s.cfg.Modes[name].Mode, event.ModeSplice), Sessions: sessions[name], ViolationStatus: s.hub.ViolationStatus(name)}
		if b.Sessions == nil {
			b.Sessions = map[event.Mode]int{}
		}
		all = append(all, b)
	}
	return all
}
