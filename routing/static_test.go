package routing

import (
	"errors"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"

	"imapgate/internal/identity"
)

func TestStaticRoutesPreferUserThenDomainThenDefault(t *testing.T) {
	r, err := New(testbed.WithDefaults(Config{
		Settings: Settings{Source: SourceStatic, Static: Static{Users: map[string]string{"Alice": "east"}, Domains: map[string]string{"Example.ORG": "west"}, Default: "last"}}, Backends: []string{"east", "west", "last"}, Names: identity.NamesInDomain("example.org"),
	}), nil, Metrics{}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]Route{
		"alice@example.org": {Backend: "east", Match: MatchUser, Key: "routing.static.users"},
		"bob@example.org":   {Backend: "west", Match: MatchDomain, Key: "routing.static.domains"},
		"bob@example.net":   {Backend: "last", Match: MatchDefault, Key: "routing.static.default"},
		"alice":             {Backend: "last", Match: MatchDefault, Key: "routing.static.default"},
	} {
		u := user(t, name)
		want.User, want.Login, want.Origin = u, name, event.OriginStatic
		if got, err := r.Lookup(t.Context(), u); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if x := r.Explain(t.Context(), u); x.Backend != want.Backend || len(x.Steps) != 3 || x.Invalidation.State != InvalidationOff {
			t.Errorf("%s is explained as %+v", name, x)
		}
	}
	if _, err := r.Password(t.Context(), user(t, "alice@example.org")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a password without Redis: %v", err)
	}
	startRouter(t, r)
}

func TestStaticRoutesWithoutADefaultDenyUnknownUsers(t *testing.T) {
	r, err := New(testbed.WithDefaults(Config{Settings: Settings{Source: SourceStatic}, Backends: []string{"east"}}), nil, Metrics{}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Lookup(t.Context(), user(t, "alice")); !errors.Is(err, ErrNoUser) {
		t.Errorf("%v", err)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	static := func(s Static) Config {
		return Config{Settings: Settings{Source: SourceStatic, Static: s}, Backends: []string{"east"}}
	}
	for name, c := range map[string]Config{
		"no source":               {},
		"another source":          {Settings: Settings{Source: "ldap"}},
		"redis without one":       {Settings: Settings{Source: SourceRedis}},
		"a prefix with a newline": {Settings: Settings{Source: SourceStatic}, Prefix: "a\nb"},
		"an unknown backend":      static(Static{Default: "west"}),
		"a user's":                static(Static{Users: map[string]string{"a": "west"}}),
		"a domain's":              static(Static{Domains: map[string]string{"x": "west"}}),
		"a bad user":              static(Static{Users: map[string]string{"a b": "east"}}),
		"a bad domain":            static(Static{Domains: map[string]string{"x@y": "east"}}),
		"an empty domain":         static(Static{Domains: map[string]string{"": "east"}}),
		"a user twice":            static(Static{Users: map[string]string{"a": "east", "A": "east"}}),
		"a domain twice":          static(Static{Domains: map[string]string{"x": "east", "X": "east"}}),
	} {
		if _, err := New(testbed.WithDefaults(c), nil, Metrics{}, testLogger(t)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestPasswordsComeFromRedisWhileRoutesAreStatic(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:user:alice", "password", "{PLAIN}x")
	s.CLI("hset", "imapgate:user:bob", "password", "{PLAIN}x", "state", "blocked")
	r, err := New(testbed.WithDefaults(Config{Settings: Settings{Source: SourceStatic, Static: Static{Default: "east"}}, Backends: []string{"east"}}),
		dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}), Metrics{}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	if hash, err := r.Password(t.Context(), user(t, "alice")); err != nil || hash.Reveal() != "{PLAIN}x" {
		t.Errorf("%v", err)
	}
	for name, want := range map[string]error{"bob": ErrBlocked, "carol": ErrNoUser} {
		if _, err := r.Password(t.Context(), user(t, name)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
}

func TestRoutesOfAnAuthServerAreUnavailableToLookup(t *testing.T) {
	r, err := New(testbed.WithDefaults(Config{Settings: Settings{Source: SourceHTTP}, Backends: []string{"east"}}), nil, Metrics{}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	u := user(t, "alice@example.org")
	if _, err := r.Lookup(t.Context(), u); !errors.Is(err, ErrUnavailable) {
		t.Errorf("lookup: %v", err) // which keeps a live session on its backend
	}
	if x := r.Explain(t.Context(), u); x.Outcome != event.LookupUnavailable || len(x.Steps) != 1 {
		t.Errorf("explained as %+v", x)
	}
}
