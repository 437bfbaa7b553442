package routing

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

// widest has all names that can be allowed.
func widest(t testing.TB) identity.Names {
	t.Helper()
	n, err := identity.NewNames(identity.Spelling{Characters: identity.MoreCharacters, UTF8: true, Prefixes: map[string]string{"DOMAIN": "corp.example"}})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// named are names that people have, and what an operator may write as login.
var named = []string{"o'brien@example.org", "user+detail@example.org", "r&d=x@example.org", "j\u00f6rg@example.org", "\u5c71\u7530@xn--bcher-kva.example"}

func canonical(t testing.TB, name string) identity.User {
	t.Helper()
	u, err := widest(t).Canon(name)
	if err != nil || u.String() != name {
		t.Fatalf("%q is %q, %v", name, u, err)
	}
	return u
}

func TestNamesThatPeopleHaveAreRoutedByRedisAndTheSnapshot(t *testing.T) {
	store := testbed.StartRedis(t)
	rdb, err := Dial(RedisConfig{Addresses: []string{store.Address}})
	if err != nil {
		t.Fatal(err)
	}
	defer rdb.Close()
	cfg := testConfig
	cfg.Names, cfg.Snapshot = widest(t), filepath.Join(t.TempDir(), "routes")
	r, err := New(cfg, rdb, Metrics{}, quiet(t))
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range named {
		u := canonical(t, name)
		if err := r.SetRecord(t.Context(), ForUser(u), map[string]string{"backend": "east", "login": named[len(named)-1-i]}); err != nil {
			t.Fatal(err)
		}
		if got, err := r.Lookup(t.Context(), u); err != nil || got.Backend != "east" || got.Login != named[len(named)-1-i] || got.Key != "imapgate:user:"+name {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if err := r.saveSnapshot(); err != nil {
		t.Fatal(err)
	}
	for _, name := range named { // as Redis names what has changed
		u := canonical(t, name)
		r.cache.changedKeys(r.keys, []string{"imapgate:user:" + name})
		if e := r.cache.entries[u]; e == nil || !e.changed {
			t.Errorf("%s: a change is not noticed", name)
		}
	}
	later := &Router{cfg: r.cfg, log: quiet(t), keys: r.keys, rules: r.rules, cache: newCache(r.cfg, newOracle().source(), quiet(t))}
	later.loadSnapshot()
	for _, name := range named {
		if e := later.cache.entries[canonical(t, name)]; e == nil || e.answer.backend != "east" {
			t.Errorf("%s is not in the snapshot: %+v", name, e)
		}
		if later.cache.sample.where["imapgate:user:"+name] == nil {
			t.Errorf("that %s had a record is not in the snapshot", name)
		}
	}
	narrow := &Router{cfg: r.cfg, log: quiet(t), keys: r.keys, rules: newRules(testConfig), cache: newCache(r.cfg, newOracle().source(), quiet(t))}
	narrow.loadSnapshot()
	if n := len(narrow.cache.entries); n != 0 {
		t.Errorf("%d names are taken from a snapshot that nobody may have now", n)
	}
}

func TestALoginMayHaveTheLettersThatUsersMayHave(t *testing.T) {
	cfg := testConfig
	plain := newRules(cfg)
	cfg.Names = widest(t)
	wide := newRules(cfg)
	for _, login := range []string{"o'brien", "a+b", "R&D=x", "CORP.alice"} {
		if plain.checkLogin(login) != nil || wide.checkLogin(login) != nil {
			t.Errorf("%q is refused", login)
		}
	}
	for _, login := range []string{"j\u00f6rg", "\u5c71\u7530", "jo\u0308rg"} {
		if plain.checkLogin(login) == nil || wide.checkLogin(login) != nil {
			t.Errorf("%q: %v, %v", login, plain.checkLogin(login), wide.checkLogin(login))
		}
	}
	for _, login := range []string{"a\u00a0b", "a\u2028b", "a\u202eb", "a\u200bb", "\ufeff", "a\uff0ab\u2042", "\U0001f600", "a\x85", "\xff", "a*b", `a\b`, `a"b`, "a b", "a\r\n", strings.Repeat("\u00f6", identity.MaxUser)} {
		if err := wide.checkLogin(login); !errors.Is(err, errRefused) {
			t.Errorf("%q: %v", login, err)
		}
	}
}
