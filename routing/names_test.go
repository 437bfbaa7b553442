package routing

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// widestNames allows all names that can be allowed.
func widestNames(t testing.TB) identity.Names {
	t.Helper()
	n, err := identity.NewNames(identity.NameRules{Characters: identity.OptionalCharacters, UTF8: true, Prefixes: map[string]string{"DOMAIN": "corp.example"}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unusualNames are names of users, and login names that an operator may write.
var unusualNames = []string{"o'brien@example.org", "user+detail@example.org", "r&d=x@example.org", "j\u00f6rg@example.org", "\u5c71\u7530@xn--bcher-kva.example"}

func canonical(t testing.TB, name string) identity.User {
	t.Helper()
	u, err := widestNames(t).Canonicalize(name)
	if err != nil || u.String() != name {
		t.Fatalf("%q is %q, %v", name, u, err)
	}
	return u
}

func TestUnusualNamesAreRoutedByRedisAndTheSnapshot(t *testing.T) {
	store := testbed.StartRedis(t)
	rdb, err := Dial(RedisConfig{RedisSettings: RedisSettings{Addresses: []string{store.Address}}})
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	cfg := testConfig
	cfg.Names, cfg.Snapshot = widestNames(t), filepath.Join(t.TempDir(), "routes")
	r, err := New(testbed.WithDefaults(cfg), rdb, Metrics{}, testLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range unusualNames {
		u := canonical(t, name)
		if err := r.SetRecord(t.Context(), ForUser(u), map[string]string{"backend": "east", "login": unusualNames[len(unusualNames)-1-i]}); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Lookup(t.Context(), u); err != nil || got.Backend != "east" || got.Login != unusualNames[len(unusualNames)-1-i] || got.Key != "imapgate:user:"+name {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if err := r.saveSnapshot(); err != nil {
		t.Fatal(err)
	}
	for _, name := range unusualNames { // as Redis sends invalidations
		u := canonical(t, name)
		r.cache.invalidateKeys([]string{"imapgate:user:" + name})
		if e := r.cache.entries[u]; e == nil || !e.invalidated {
			t.Errorf("%s: a change is not noticed", name)
		}
	}
	later := &Router{cfg: r.cfg, log: testLogger(t), keys: r.keys, rules: r.rules, cache: newCache(r.cfg, newFakeStore().reader(), testLogger(t))}
	later.loadSnapshot()
	for _, name := range unusualNames {
		if e := later.cache.entries[canonical(t, name)]; e == nil || e.decision.backend != "east" {
			t.Errorf("%s is not in the snapshot: %+v", name, e)
		}
		if later.cache.store.sample.nodeByKey["imapgate:user:"+name] == nil {
			t.Errorf("that %s had a record is not in the snapshot", name)
		}
	}
	narrow := &Router{cfg: r.cfg, log: testLogger(t), keys: r.keys, rules: newRules(testConfig), cache: newCache(r.cfg, newFakeStore().reader(), testLogger(t))}
	narrow.loadSnapshot()
	if n := len(narrow.cache.entries); n != 0 {
		t.Errorf("%d names that no user may have now are restored from a snapshot", n)
	}
}

func TestLoginNamesMayHaveTheLettersOfUserNames(t *testing.T) {
	cfg := testConfig
	plain := newRules(cfg)
	cfg.Names = widestNames(t)
	wide := newRules(cfg)
	for _, login := range []string{"o'brien", "a+b", "R&D=x", "CORP.alice"} {
		if plain.checkLogin(login) != nil || wide.checkLogin(login) != nil {
			t.Errorf("%q is rejected", login)
		}
	}
	for _, login := range []string{"j\u00f6rg", "\u5c71\u7530", "jo\u0308rg"} {
		if plain.checkLogin(login) == nil || wide.checkLogin(login) != nil {
			t.Errorf("%q: %v, %v", login, plain.checkLogin(login), wide.checkLogin(login))
		}
	}
	for _, login := range []string{"a\u00a0b", "a\u2028b", "a\u202eb", "a\u200bb", "\ufeff", "a\uff0ab\u2042", "\U0001f600", "a\x85", "\xff", "a*b", `a\b`, `a"b`, "a b", "a\r\n", strings.Repeat("\u00f6", identity.MaxUser)} {
		if err := wide.checkLogin(login); !errors.Is(err, errInvalidRecord) {
			t.Errorf("%q: %v", login, err)
		}
	}
}
