package proxy

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"

	"imapgate/internal/identity"
	"imapgate/proxy/mux"
)

// Place is where sessions of a user are: at a backend, under the login name there
// that the route gave, in a mode. A session keeps the place it was admitted to,
// also when it is pinned.
type Place struct {
	Backend string `json:"backend"`
	Login   string `json:"login"`
	Mode    string `json:"mode"`
}

// SessionCount is how many live sessions of a user there are in a place.
type SessionCount struct {
	Place
	Count int `json:"count"`
}

// registry counts the live sessions of each user, as this gateway has them.
type registry struct {
	mu    sync.Mutex
	users map[identity.User][]SessionCount // Guarded by mu. No count is 0, no list empty.
}

func newRegistry() *registry { return &registry{users: map[identity.User][]SessionCount{}} }

// add counts one session more.
func (r *registry) add(user identity.User, at Place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := r.users[user]
	if i := indexOf(counts, at); i >= 0 {
		counts[i].Count++
		return
	}
	r.users[user] = append(counts, SessionCount{at, 1})
}

// remove counts one session less, which add has counted.
func (r *registry) remove(user identity.User, at Place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := r.users[user]
	i := indexOf(counts, at)
	if counts[i].Count--; counts[i].Count > 0 {
		return
	}
	if counts = slices.Delete(counts, i, i+1); len(counts) == 0 {
		delete(r.users, user)
		return
	}
	r.users[user] = counts
}

// of returns the counts of a user in order, none for a user without a session.
func (r *registry) of(user identity.User) []SessionCount {
	r.mu.Lock()
	defer r.mu.Unlock()
	counts := slices.Clone(r.users[user])
	slices.SortFunc(counts, func(a, b SessionCount) int {
		return cmp.Or(strings.Compare(a.Backend, b.Backend), strings.Compare(a.Login, b.Login), strings.Compare(a.Mode, b.Mode))
	})
	return counts
}

// byBackend counts the sessions at each backend, by mode.
func (r *registry) byBackend() map[string]map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]map[string]int{}
	for _, counts := range r.users {
		for _, c := range counts {
			if all[c.Backend] == nil {
				all[c.Backend] = map[string]int{}
			}
			all[c.Backend][c.Mode] += c.Count
		}
	}
	return all
}

func indexOf(counts []SessionCount, at Place) int {
	return slices.IndexFunc(counts, func(c SessionCount) bool { return c.Place == at })
}

// SessionsOf returns the live sessions of a user at this gateway, by place. They
// stay there until they end, whatever the routes say.
func (s *Server) SessionsOf(user identity.User) []SessionCount { return s.registry.of(user) }

// BackendState is a backend as this gateway has it.
type BackendState struct {
	Name     string         `json:"name"`
	Mode     string         `json:"mode"`     // of sessions whose route names none
	Sessions map[string]int `json:"sessions"` // that are live, by the mode they were admitted in
	mux.Trust
}

// Backends returns all backends, by name.
func (s *Server) Backends() []BackendState {
	sessions := s.registry.byBackend()
	all := make([]BackendState, 0, len(s.rooms.Backends))
	for _, name := range slices.Sorted(maps.Keys(s.rooms.Backends)) {
		b := BackendState{Name: name, Mode: cmp.Or(s.cfg.Modes[name].Name, spliceMode), Sessions: sessions[name], Trust: s.mux.Trust(name)}
		if b.Sessions == nil {
			b.Sessions = map[string]int{}
		}
		all = append(all, b)
	}
	return all
}
