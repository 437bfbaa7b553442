package proxy

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux"
)

// relayedClient is a client after its login: what the records of its session need.
type relayedClient struct {
	server    *Server
	limits    *limit.Conn
	client    audit.Client
	mechanism string // of the login
	live      *relay.Session
}

// OnEnd implements relay.Owner: it records the end of a session and releases its slots.
func (c *relayedClient) OnEnd(r relay.Result) {
	srv, live := c.server, c.live.Info()
	record := audit.Session{
		User: live.User, Backend: live.Backend, Mode: live.Mode, Commands: r.Commands, Duration: time.Since(live.StartedAt),
		BytesIn: uint64(r.Up), BytesOut: uint64(r.Down), // never negative
	}
	errText := ""
	if r.Err != nil {
		errText = r.Err.Error()
	}
	c.limits.Close()
	srv.removeConnection()
	_ = srv.deps.Audit.SessionEnded(&c.client, &record, r.Reason)
	srv.deps.Metrics.EndSession(live.Mode, r.Reason)
	srv.deps.Log.Info("session", zap.String("session", live.ID), zap.Stringer("user", live.User),
		zap.String("backend", live.Backend), zap.String("mode", string(live.Mode)), zap.String("reason", string(r.Reason)),
		zap.Int64("bytes", r.Up+r.Down), zap.Duration("dur", record.Duration), zap.String("err", errText))
}

// quota is a user's quota for one session. It records throttled and refused use in the
// metrics and the audit log.
type quota struct {
	*limit.Quota
	client *relayedClient
}

// quota returns nil for a user without a quota.
func (c *relayedClient) quota() *quota {
	q := c.limits.Quota()
	if q == nil {
		return nil
	}
	return &quota{q, c}
}

// Command and the methods below add records to those of limit.Quota.
func (q *quota) Command() time.Duration {
	return q.recordThrottle(event.LimitCommands, q.Quota.Command())
}

func (q *quota) Read(n int) time.Duration {
	return q.recordThrottle(event.LimitBytesIn, q.Quota.Read(n))
}

func (q *quota) Written(n int) time.Duration {
	return q.recordThrottle(event.LimitBytesOut, q.Quota.Written(n))
}

func (q *quota) Upload(ctx context.Context, n int64) bool {
	ok := q.Quota.Upload(ctx, n)
	if !ok {
		q.client.server.deps.Metrics.Limits.CountRefusal(event.LimitAppend)
		q.recordHit(event.LimitAppend, event.ResultRefused)
	}
	return ok
}

// recordThrottle records a wait, if there is one, and returns it.
func (q *quota) recordThrottle(limitName event.Limit, wait time.Duration) time.Duration {
	if wait > 0 {
		q.client.server.deps.Metrics.Limits.CountThrottle(limitName)
		q.recordHit(limitName, event.ResultSlowed)
	}
	return wait
}

func (q *quota) recordHit(limitName event.Limit, result event.Result) {
	c := q.client
	_ = c.server.deps.Audit.LimitHit(&c.client, &audit.LimitHit{Limit: limitName, Subject: c.live.Info().User.String(), Result: result})
}

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

// ClientOf returns the client of a session and the mechanism of its login.
func (s *Server) ClientOf(live *relay.Session) (client audit.Client, mechanism string, ok bool) {
	c, ok := live.Owner().(*relayedClient)
	if !ok {
		return audit.Client{}, "", false
	}
	return c.client, c.mechanism, true
}

// BlockUser refuses the logins of a user until a time.
func (s *Server) BlockUser(user identity.User, until time.Time) { s.logins.Blocks.Add(user, until) }

// BlockedUntil returns until when the logins of a user are refused; zero if they are not.
func (s *Server) BlockedUntil(user identity.User) time.Time { return s.logins.Blocks.Until(user) }

// SessionsOf returns the live sessions of a user at this gateway by route. Sessions stay on
// their route until they end or are moved, even if the route changes.
func (s *Server) SessionsOf(user identity.User) (counts []SessionCount) {
	for _, live := range s.sessions.Select(relay.Query{User: user}) {
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
		for _, live := range s.sessions.Select(relay.Query{Backend: name}) {
			b.Sessions[live.Info().Mode]++
		}
		all = append(all, b)
	}
	return all
}
