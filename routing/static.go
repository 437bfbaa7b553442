package routing

import (
	"fmt"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// static holds the routes of the configuration, which never change.
type static struct {
	users   map[identity.User]string
	domains map[string]string
	deflt   string
}

// newStatic checks the configured routes: every value must be a backend and every name a valid
// user or domain.
func newStatic(c Config) (*static, error) {
	s := &static{users: make(map[identity.User]string), domains: make(map[string]string), deflt: c.Static.Default}
	backends := newRules(c).backends
	if s.deflt != "" && !backends[s.deflt] {
		return nil, fmt.Errorf("static default route: no backend is named %q", s.deflt)
	}
	for name, backend := range c.Static.Users {
		u, err := c.Names.Canonicalize(name)
		if err != nil {
			return nil, fmt.Errorf("static route of user %q: %w", name, err)
		}
		if _, duplicate := s.users[u]; duplicate {
			return nil, fmt.Errorf("static route of user %q: the user is listed twice", name)
		}
		if !backends[backend] {
			return nil, fmt.Errorf("static route of user %q: no backend is named %q", name, backend)
		}
		s.users[u] = backend
	}
	for name, backend := range c.Static.Domains {
		domain, err := c.Names.CanonicalizeDomain(name)
		if err != nil {
			return nil, fmt.Errorf("static route of domain %q: no user can have it", name)
		}
		if _, duplicate := s.domains[domain]; duplicate {
			return nil, fmt.Errorf("static route of domain %q: the domain is listed twice", name)
		}
		if !backends[backend] {
			return nil, fmt.Errorf("static route of domain %q: no backend is named %q", name, backend)
		}
		s.domains[domain] = backend
	}
	return s, nil
}

func (s *static) lookup(u identity.User) (Route, error) {
	r := Route{User: u, Login: u.String(), Origin: event.OriginStatic}
	if b, ok := s.users[u]; ok {
		r.Backend, r.Match, r.Key = b, MatchUser, "routing.static.users"
	} else if b, ok := s.domains[u.Domain()]; ok {
		r.Backend, r.Match, r.Key = b, MatchDomain, "routing.static.domains"
	} else if s.deflt != "" {
		r.Backend, r.Match, r.Key = s.deflt, MatchDefault, "routing.static.default"
	} else {
		return Route{}, ErrNoUser
	}
	return r, nil
}

// steps returns the configured routes of u, for Explain.
func (s *static) steps(u identity.User) []Step {
	content := func(backend string) string {
		if backend == "" {
			return noRecord
		}
		return "backend=" + backend
	}
	steps := []Step{
		{Key: "routing.static.users", Content: content(s.users[u])},
		{Key: "routing.static.domains", Content: content(s.domains[u.Domain()])},
		{Key: "routing.static.default", Content: content(s.deflt)},
	}
	return steps
}
