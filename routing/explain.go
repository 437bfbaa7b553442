package routing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"imapgate/internal/event"
	"imapgate/internal/identity"

	"github.com/redis/go-redis/v9"
)

const noRecord = "no record"

// Explanation describes the routing of one user for an operator: the current records, what a
// login would get now, and whether changes are received.
type Explanation struct {
	User  string `json:"user"`
	Steps []Step `json:"steps"` // in order of precedence

	Route // the decision; zero without a route

	Error   string       `json:"error,omitempty"` // why there is no route
	Outcome event.Origin `json:"outcome"`         // as reported to Metrics.Lookup
	// Next is the decision of the current records, if the gateway has not noticed it yet.
	Next *Decision `json:"next,omitempty"`

	Invalidation InvalidationStatus `json:"channel"`
	// BreakerOpen is true while Redis is not queried because it did not answer.
	BreakerOpen bool `json:"redis_left_alone,omitempty"`
	// Store reports whether Redis has the records it was seen to have.
	Store StoreStatus `json:"store,omitzero"`
}

// Decision is the result of the records for one user.
type Decision struct {
	Backend string     `json:"backend,omitempty"`
	Login   string     `json:"login,omitempty"`
	Mode    event.Mode `json:"mode,omitempty"`
	Key     string     `json:"key,omitempty"`
	Error   string     `json:"error,omitempty"` // why there is no route
}

func newDecision(route Route, err error) Decision {
	if err != nil {
		return Decision{Error: err.Error()}
	}
	return Decision{Backend: route.Backend, Login: route.Login, Mode: route.Mode, Key: route.Key}
}

// Step is one record and its content.
type Step struct {
	Key     string `json:"key"`
	Content string `json:"says"`           // its fields, "no record", or what is wrong
	Used    bool   `json:"used,omitempty"` // this record decided
}

// Explain reports where a login of u would go and why. It reads the records from Redis and not
// from the cache, so that differences between them and the decision are visible.
func (r *Router) Explain(ctx context.Context, u identity.User) Explanation {
	route, err := r.lookup(ctx, u)
	x := Explanation{
		User: u.String(), Route: route, Outcome: outcome(route, err), Invalidation: InvalidationStatus{State: InvalidationOff},
	}
	if err != nil {
		x.Error = err.Error()
	}
	switch {
	case r.static != nil:
		x.Steps = r.static.steps(u)
	case r.cfg.Source == SourceHTTP:
		x.Steps = []Step{{Key: "routing.source", Content: "http: the auth server supplies the route with each login"}}
	default:
		var next *Decision
		x.Steps, next = r.store.steps(ctx, u)
		x.BreakerOpen = r.cache.breakerOpen()
		x.Store = r.cache.storeStatus()
		if next != nil && *next != newDecision(route, err) && x.Outcome != event.LookupUnavailable && x.Store.State != StoreSuspect && x.Store.State != StoreEmptied {
			x.Next = next
		}
	}
	if r.invalidator != nil {
		x.Invalidation = r.invalidator.status()
	}
	for i := range x.Steps {
		x.Steps[i].Used = x.Steps[i].Key == x.Key
	}
	return x
}

func (c *cache) breakerOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.breaker.IsOpen()
}

// steps reads and checks the records of u for display. It also returns their decision,
// or nil without one.
func (s *store) steps(ctx context.Context, u identity.User) ([]Step, *Decision) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	r, err := s.fetch(ctx, u, nil)
	var steps []Step
	for i, key := range s.keys.candidates(u) {
		steps = append(steps, s.describeRecord(u, key, r.records[i]))
		if errors.Is(err, errReplyMismatch) {
			steps[i].Content = err.Error()
		}
	}
	decided, parseErr := s.decide(u, r.records)
	if err != nil || parseErr != nil {
		return steps, nil
	}
	d := newDecision(resolution{decision: decided}.toRoute(u))
	return steps, &d
}

func (s *store) describeRecord(u identity.User, key string, cmd *redis.MapStringStringCmd) Step {
	if _, err := s.parseReply(u, key, cmd); err != nil {
		return Step{Key: key, Content: err.Error()}
	}
	fields := cmd.Val()
	if len(fields) == 0 {
		return Step{Key: key, Content: noRecord}
	}
	var parts []string
	for _, name := range []string{fieldBackend, fieldLogin, fieldMode, fieldState, fieldUser} {
		if v, ok := fields[name]; ok {
			parts = append(parts, fmt.Sprintf("%s=%.*q", name, identity.MaxUser, v))
		}
	}
	if _, ok := fields[fieldPassword]; ok {
		parts = append(parts, "password=[secret]")
	}
	slices.Sort(parts)
	return Step{Key: key, Content: strings.Join(parts, " ")}
}
