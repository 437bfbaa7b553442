package routing

import (
	"errors"
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
func newStatic(c Config, backends map[string]bool) (*static, error) {
	if deflt := c.Static.Default; deflt != "" && !backends[deflt] {
		return nil, fmt.Errorf("static default route: no backend is named %q", deflt)
	}
	users, err := checkRoutes("user", c.Static.Users, backends, c.Names.Canonicalize)
	if err != nil {
		return nil, err
	}
	domains, err := checkRoutes("domain", c.Static.Domains, backends, func(name string) (string, error) {
		domain, err := c.Names.CanonicalizeDomain(name)
		if err != nil {
			err = errors.New("no user can have it")
		}
		return domain, err
	})
	return &static{users: users, domains: domains, deflt: c.Static.Default}, err
}

// checkRoutes returns the configured routes of one kind by canonical name.
func checkRoutes[K comparable](kind string, configured map[string]string, backends map[string]bool, canonicalize func(string) (K, error)) (map[K]string, error) {
	routes := make(map[K]string, len(configured))
	for name, backend := range configured {
		key, err := canonicalize(name)
		_, duplicate := routes[key]
		switch {
		case err != nil:
		case duplicate:
			err = fmt.Errorf("the %s is listed twice", kind)
		case !backends[backend]:
			err = fmt.Errorf("no backend is named %q", backend)
		}
		if err != nil {
			return nil, fmt.Errorf("static route of %s %q: %w", kind, name, err)
		}
		routes[key] = backend
	}
	return routes, nil
}

// routes returns the configured routes of u in order of precedence; without a Backend where
// there is none.
func (s *static) routes(u identity.User) [3]Route {
	return [3]Route{
		{Match: MatchUser, Key: "routing.static.users", Backend: s.users[u]},
		{Match: MatchDomain, Key: "routing.static.domains", Backend: s.domains[u.Domain()]},
		{Match: MatchDefault, Key: "routing.static.default", Backend: s.deflt},
	}
}

func (s *static) lookup(u identity.User) (Route, error) {
	for _, r := range s.routes(u) {
		if r.Backend != "" {
			r.User, r.Login, r.Origin = u, u.String(), event.OriginStatic
			return r, nil
		}
	}
	return Route{}, ErrNoUser
}

// steps returns the configured routes of u, for Explain.
func (s *static) steps(u identity.User) (steps []Step) {
	for _, r := range s.routes(u) {
		content := noRecord
		if r.Backend != "" {
			content = "backend=" + r.Backend
		}
		steps = append(steps, Step{Key: r.Key, Content: content})
	}
	return steps
}
