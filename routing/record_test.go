package routing

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

var testConfig = Config{Settings: Settings{Source: SourceRedis}, Backends: []string{"east", "west"}, Prefix: DefaultPrefix}

type fields = map[string]string

// invalidRecords are records of alice that must be rejected. The records of the domain and the
// default must not replace them.
func invalidRecords() map[string]fields {
	many := fields{"backend": "east"}
	for i := range maxFields {
		many[fmt.Sprint("f", i)] = ""
	}
	p := map[string]fields{
		"too many fields":         many,
		"too many bytes":          {"backend": "east", "note": strings.Repeat("x", maxRecord)},
		"a mebibyte":              {"backend": strings.Repeat("e", 1<<20)},
		"no backend":              {"login": "alice"},
		"no backend, active":      {"state": "active", "mode": "splice"},
		"only an unknown field":   {"shard": "east"},
		"an empty field name":     {"": "east"},
		"a field in upper case":   {"Backend": "east"},
		"another user's":          {"backend": "east", "user": "bob"},
		"no user's":               {"backend": "east", "user": ""},
		"alice in upper case":     {"backend": "east", "user": "ALICE"},
		"alice with a newline":    {"backend": "east", "user": "alice\n"},
		"alice elsewhere":         {"backend": "east", "user": "alice@example.org"},
		"blocked, another user's": {"state": "blocked", "user": "bob"},
		"a good backend, no mode": {"backend": "east", "mode": ""},
		"an empty state":          {"backend": "east", "state": ""},
		"an empty login":          {"backend": "east", "login": ""},
		"an empty password":       {"backend": "east", "password": ""},
		"a long password":         {"backend": "east", "password": strings.Repeat("x", maxPassword+1)},
		"a password with NUL":     {"backend": "east", "password": "{PLAIN}a\x00b"},
		"a password with 8 bits":  {"backend": "east", "password": "{PLAIN}\xff"},
	}
	for _, backend := range []string{
		"", " ", "east ", " east", "EAST", "east\r\n", "east\x00", "east,west", "127.0.0.1:6379", "169.254.169.254:80",
		"[::ffff:127.0.0.1]:6379", "0x7f.1", "localhost:25", "unix:/x", "a\nb", "{}", "[]", "null", "nil", "0", "*", "default",
		`{"backend":"east"}`, "../east", "\xff\xfe", "\u202eeast", "eаst", "%s%n", "imaps://east",
	} {
		p[fmt.Sprintf("backend %q", backend)] = fields{"backend": backend}
	}
	for _, login := range []string{
		" ", "a b", "a\r\nX LOGOUT", "a\x00", "a\tb", `a"b`, `a\b`, "a`b", "victim*master", "%u", "a{3}", "(a)", "[a]", "\x7f",
		"ａｌｉｃｅ", "stra\u00dfe", "\xff", strings.Repeat("a", identity.MaxUser+1),
	} {
		p[fmt.Sprintf("login %.20q", login)] = fields{"backend": "east", "login": login}
	}
	for _, mode := range []string{"Splice", "splice ", "mux", "0", "park\n", "true"} {
		p[fmt.Sprintf("mode %q", mode)] = fields{"backend": "east", "mode": mode}
	}
	for _, state := range []string{"Active", "blocked ", "disabled", "1", "block\x00ed"} {
		p[fmt.Sprintf("state %q", state)] = fields{"backend": "east", "state": state}
	}
	return p
}

func TestInvalidRecordsAreRejected(t *testing.T) {
	if n := len(invalidRecords()); n < 40 {
		t.Errorf("only %d invalid records", n)
	}
	alice := user(t, "alice")
	for name, f := range invalidRecords() {
		if rec, err := newRules(testConfig).parse(alice, f); !errors.Is(err, errInvalidRecord) || rec.present {
			t.Errorf("%s: %+v, %v", name, rec, err)
		} else if v := f["backend"]; len(v) > 5 && strings.Contains(err.Error(), v) {
			t.Errorf("%s: the error repeats the value: %v", name, err)
		}
	}
}

func TestValidRecordsAreParsed(t *testing.T) {
	alice, r := user(t, "alice"), newRules(testConfig)
	for _, c := range []struct {
		fields fields
		want   record
	}{
		{nil, record{}},
		{fields{}, record{}},
		{fields{"backend": "east"}, record{present: true, backend: "east", state: "active"}},
		{fields{"backend": "west", "user": "alice", "login": "a.smith+x@corp", "mode": "resume", "state": "active", "note": "\x00"},
			record{present: true, backend: "west", login: "a.smith+x@corp", mode: "resume", state: "active"}},
		{fields{"state": "blocked"}, record{present: true, state: "blocked"}},
		{fields{"state": "paused", "backend": "east"}, record{present: true, state: "paused", backend: "east"}},
		{fields{"backend": "east", "password": "{SHA512-CRYPT}$6$x$y/."},
			record{present: true, backend: "east", state: "active", password: identity.NewSecret("{SHA512-CRYPT}$6$x$y/.")}},
	} {
		if got, err := r.parse(alice, c.fields); err != nil || got != c.want {
			t.Errorf("%v: %+v, %v", c.fields, got, err)
		}
	}
}

// Against a real Redis, from redis-cli to Lookup: a poisoned record keeps the last
// good route, and without one the user waits; the domain is never used instead.
func TestAnInvalidRecordNeverFallsThrough(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:domain:example.org", "backend", "west")
	s.CLI("hset", "imapgate:default", "backend", "west")
	rdb := dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}})
	known, fresh := user(t, "known@example.org"), user(t, "fresh@example.org")
	key := "imapgate:user:"
	poison := map[string]func(key string) error{
		"a string": func(k string) error { return rdb.Set(t.Context(), k, "east", 0).Err() },
		"a list":   func(k string) error { return rdb.RPush(t.Context(), k, "backend", "east").Err() },
		"a set":    func(k string) error { return rdb.SAdd(t.Context(), k, "backend").Err() },
		"a stream": func(k string) error {
			return rdb.Do(t.Context(), "xadd", k, "*", "backend", "east").Err()
		},
	}
	for name, f := range invalidRecords() {
		poison[name] = func(k string) error { return rdb.HSet(t.Context(), k, f).Err() }
	}
	for name, write := range poison {
		rdb.Del(t.Context(), key+known.String(), key+fresh.String())
		rdb.HSet(t.Context(), key+known.String(), "backend", "east")
		r := newRouter(t, rdb)
		if got, err := r.Lookup(t.Context(), known); err != nil || got.Backend != "east" {
			t.Fatalf("%s: before: %+v, %v", name, got, err)
		}
		rdb.Del(t.Context(), key+known.String())
		for _, u := range []identity.User{known, fresh} {
			if err := write(key + u.String()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		r.cache.invalidateKeys([]string{key + known.String()})
		if got, err := r.Lookup(t.Context(), known); err != nil || got.Backend != "east" || got.Origin != event.OriginStale {
			t.Errorf("%s: a known user goes %+v, %v", name, got, err)
		}
		if got, err := r.Lookup(t.Context(), fresh); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: a new user goes %+v, %v", name, got, err)
		}
		if _, err := r.Password(t.Context(), fresh); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: a new user's password: %v", name, err)
		}
		if x := r.Explain(t.Context(), fresh); !strings.Contains(x.Steps[0].Content, "invalid record") {
			t.Errorf("%s: explained as %q", name, x.Steps[0].Content)
		}
	}
}

func TestBlockedAndPausedUsersAreRejected(t *testing.T) {
	s := testbed.StartRedis(t)
	s.CLI("hset", "imapgate:user:blocked", "state", "blocked")
	s.CLI("hset", "imapgate:user:paused", "state", "paused", "backend", "east", "password", "{PLAIN}x")
	s.CLI("hset", "imapgate:domain:closed.example", "state", "blocked")
	s.CLI("hset", "imapgate:user:own@closed.example", "backend", "east")
	var results []event.Origin
	r, err := New(testbed.WithDefaults(testConfig), dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{s.Address}}}),
		Metrics{Lookup: func(result event.Origin) { results = append(results, result) }}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		want error
	}{
		{"blocked", ErrBlocked}, {"paused", ErrPaused}, {"a@closed.example", ErrBlocked}, {"own@closed.example", nil}, {"unknown", ErrNoUser},
	} {
		if _, err := r.Lookup(t.Context(), user(t, c.name)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if _, err := r.Lookup(t.Context(), identity.User{}); !errors.Is(err, ErrNoUser) {
		t.Errorf("the zero user: %v", err)
	}
	if got := fmt.Sprint(results); got != "[blocked paused blocked redis no_user no_user]" {
		t.Errorf("metrics: %q", got)
	}
	for name, want := range map[string]error{"paused": nil, "blocked": ErrNoUser, "unknown": ErrNoUser, "own@closed.example": ErrNoUser} {
		if _, err := r.Password(t.Context(), user(t, name)); !errors.Is(err, want) {
			t.Errorf("password of %s: %v, want %v", name, err, want)
		}
	}
}

func FuzzRouteValue(f *testing.F) {
	f.Add("backend", "east", "user", "alice", "login", "a")
	f.Add("backend", "127.0.0.1:25", "state", "blocked", "mode", "park")
	f.Add("", "", "password", "x", "user", "bob")
	alice, rules := user(f, "alice"), newRules(testConfig)
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		in := fields{k1: v1, k2: v2, k3: v3}
		rec, err := rules.parse(alice, in)
		if err != nil {
			if rec.present {
				t.Fatalf("rejected and used: %+v", rec)
			}
			return
		}
		d, err := (&store{keys: keys{DefaultPrefix}, rules: rules}).decide(alice, []*redis.MapStringStringCmd{
			redis.NewMapStringStringResult(in, nil), redis.NewMapStringStringResult(fields{"backend": "west"}, nil),
		})
		if err != nil || d.record != rec {
			t.Fatalf("%v: decided by %+v, %v", in, d, err)
		}
		route, err := resolution{decision: d}.toRoute(alice)
		if err != nil {
			if !errors.Is(err, ErrBlocked) && !errors.Is(err, ErrPaused) {
				t.Fatalf("%v: %v", in, err)
			}
			return
		}
		if owner, ok := in["user"]; ok && owner != "alice" || !rules.backends[route.Backend] || route.Match != MatchUser ||
			route.User != alice || route.Backend != in["backend"] || rules.checkLogin(route.Login) != nil {
			t.Fatalf("%v gave %+v", in, route)
		}
	})
}

func FuzzRedisKey(f *testing.F) {
	f.Add("alice", "alice@example.org", "imapgate:")
	f.Add("default", "domain:x", "")
	f.Add("a:b", "{a}", "x:{y}")
	f.Add("o'brien+x@example.org", "j\u00f6rg@example.org", "imapgate:")
	f.Add("a\uff1ab", "a\uff5bb\uff5d", "imapgate:")
	f.Fuzz(func(t *testing.T, a, b, prefix string) {
		k := keys{prefix}
		ua, errA := widestNames(t).Canonicalize(a)
		ub, errB := widestNames(t).Canonicalize(b)
		if errA != nil || errB != nil {
			return
		}
		if (k.user(ua) == k.user(ub)) != (ua == ub) {
			t.Fatalf("%q and %q: keys %q and %q", a, b, k.user(ua), k.user(ub))
		}
		for _, other := range []string{k.domain(ub.Domain()), k.domain(ub.String()), k.deflt()} {
			if k.user(ua) == other {
				t.Fatalf("%q has the key %q of something else", a, other)
			}
		}
		if strings.ContainsAny(strings.TrimPrefix(k.user(ua), prefix+"user:"), ":{} *?[\\\r\n\x00") {
			t.Fatalf("%q has the key %q", a, k.user(ua))
		}
	})
}
