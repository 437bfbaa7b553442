package proxy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux"
)

// SessionRoute is where sessions of a user are relayed to: a backend, the login name there
// and a mode. A session keeps the values it was admitted with, also after it is pinned, unless
// it moves.
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

// Registry returns the live sessions.
func (s *Server) Registry() *relay.Registry { return s.sessions }

// SessionsOf returns the live sessions of a user at this gateway by route. Sessions stay on
// their route until they end or are moved, even if the route changes.
func (s *Server) SessionsOf(user identity.User) (counts []SessionCount) {
	for _, live := range s.sessions.Select(func(i *relay.Info) bool { return i.User == user }) {
		info := live.Info()
		route := SessionRoute{info.Backend, info.Login, info.Mode}
		i := slices.IndexFunc(counts, func(c SessionCount) bool { return c.SessionRoute == route })
		if i < 0 {
			i, counts = len(counts), append(counts, SessionCount{SessionRoute: route})
		}
		counts[i].Count++
	}
	slices.SortFunc(counts, func(a, b SessionCount) int {
		return cmp.Or(strings.Compare(a.Backend, b.Backend), strings.Compare(a.Login, b.Login), cmp.Compare(a.Mode, b.Mode))
	})
	return counts
}

// BackendState is the state of a backend at this gateway.
type BackendState struct {
	Name     string             `json:"name"`
	Mode     event.Mode         `json:"mode"`     // of sessions whose route names none
	Sessions map[event.Mode]int `json:"sessions"` // live sessions, by the mode they were admitted in
	mux.ViolationStatus
}

// Backends returns all backends, sorted by name.
func (s *Server) Backends() []BackendState {
	all := make([]BackendState, 0, len(s.deps.Backends))
	for _, name := range slices.Sorted(maps.Keys(s.deps.Backends)) {
		b := BackendState{Name: name, Mode: cmp.Or(s.cfg.Modes[name].Mode, event.ModeSplice), Sessions: map[event.Mode]int{}, ViolationStatus: s.hub.ViolationStatus(name)}
		for _, live := range s.sessions.Select(func(i *relay.Info) bool { return i.Backend == name }) {
			b.Sessions[live.Info().Mode]++
		}
		all = append(all, b)
	}
	return all
}
