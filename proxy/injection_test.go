package proxy

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/routing"
)

// The "injection" and "identity" rows of the attack catalogue.

// hostileNames are names that no account has.
var hostileNames = []string{
	"u\r\nX DELETE INBOX", "u\nX", "u\rX", "u\x00v", "\x1b[2J", "u\x7f", "x\"} {\"event\":\"login_accepted\",\"user\":\"admin",
	"\u2028", "\u202ealice", "\xff\xfe", "*", "a:b", "{x}", "}{", "alice\r\nSET route:bob evil\r\n", "../", "%{user}%u$(id){{.}}",
	" alice", "alice ", "\u212A", "\u0130", "\u0131", "\uff41lice", "stra\u00dfe", "e\u0301", "a\u200db", "alice%40ex.com", "alice@ex.com@evil",
	"alice@ex.com.", "\"alice\"@ex", "alice+x@ex", "a/b", "@", "alice@", "@example.org", "victim*master", "*master", "victim*", "a*b*c",
	strings.Repeat("a", 321), strings.Repeat("a", 7000),
}

func encodeLiteral(text string) string { return fmt.Sprintf("{%d+}\r\n%s", len(text), text) }

func TestHostileNamesAreRefusedBeforeLookup(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.cfg.MaxAuthAttempts = 1 << 20
		s.routes.Static.Default = "east"
	})
	var clients []*client
	for _, name := range hostileNames { // each on its own connection, because denials are slow
		c := b.dialGreeted("none")
		c.write("a LOGIN " + encodeLiteral(name) + " right\r\n")
		clients = append(clients, c)
		c = b.dialGreeted("implicit")
		c.write("a AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+name+"\x00right")) + "\r\n")
		if len(name) > 6000 {
			c.close() // base64 makes the line too long
			continue
		}
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.expectLine("a " + authFailedReply)
	}
	if m.Open() > 0 || m.receivedText() != "" || b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was contacted")
	}
	b.stopServer()
	for line := range strings.Lines(b.logs.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("log line %q", line)
		}
	}
	for _, r := range b.records() { // valid lines of JSON
		for k, v := range r {
			if text := fmt.Sprint(v); len(text) > 260 || strings.ContainsFunc(text, func(c rune) bool {
				return unicode.IsControl(c) || unicode.Is(unicode.Cf, c) || c == '\u2028'
			}) {
				t.Errorf("%s is %q", k, text)
			}
		}
		if r.field("event") == "login_accepted" {
			t.Errorf("forged: %v", r)
		}
	}
}

func TestHostilePasswordsAreRefusedBeforeLookup(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	var clients []*client
	for _, secret := range []string{"pw\r\nX DELETE INBOX", "pw\n", "\rpw", "p\x00w", "pw\x1b", "pw\x7f", "\xe4\t", strings.Repeat("x", 1025), ""} {
		c := b.dialGreeted("none")
		c.write("a LOGIN alice " + encodeLiteral(secret) + "\r\n")
		clients = append(clients, c)
		c = b.dialGreeted("none")
		c.write("a AUTHENTICATE LOGIN YWxpY2U=\r\n")
		c.expectLine("+ …")
		c.write(base64.StdEncoding.EncodeToString([]byte(secret)) + "\r\n")
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.expectLine("a " + authFailedReply)
	}
	if m.Open() > 0 || b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was contacted")
	}
}

func TestBytesAfterLoginAreRelayedUnchanged(t *testing.T) {
	backend := openScriptedBackend(t)
	b := newHarness(t, backend.l.Addr().String())
	odd := "b NOOP\nc\rd {5}\ne ~{5}\r\nf {5+}\r\n\x00\xff\"\\\r\ng \"…\\\r\n\r\n" + strings.Repeat("x", 20_000) + "\n"
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.dialGreeted(listener)
		c.write("a LOGIN alice right\r\n" + odd)
		login, err := backend.backendConn().ReadLogin()
		testkit.NoError(t, err)
		testkit.NoError(t, backend.backendConn().Send(login.Tag+" OK [CAPABILITY IMAP4rev1] In."))
		c.expectLine("a OK …")
		c.write(odd)
		got := make([]byte, 2*len(odd))
		for n := 0; n < len(got); {
			k, err := backend.backendConn().R.Read(got[n:])
			testkit.NoError(t, err)
			n += k
		}
		if string(got) != odd+odd {
			t.Errorf("%s: the backend got %.100q", listener, got)
		}
		testkit.NoError(t, backend.backendConn().Send(odd))
		for n := 0; n < len(odd)+2; {
			k, err := c.r.Read(got)
			testkit.NoError(t, err)
			n += k
		}
		c.close()
		backend.closeConn()
	}
}

func TestTLSErrorTextCannotForgeLogLines(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	const forged = "\n{\"event\":\"login_accepted\"}\r\n\x1b[2J\u202e\u2028"
	for range 3 {
		c := b.dial("implicit")
		if err := c.handshake(&tls.Config{NextProtos: []string{forged}}); err == nil {
			t.Error("a foreign protocol was accepted")
		}
		c.close()
		if r := b.lastRecord("connection_refused", c); strings.ContainsAny(r.field("detail"), "\n\x1b\u202e\u2028") {
			t.Errorf("%q", r.field("detail"))
		}
	}
	b.stopServer()
	for line := range strings.Lines(b.logs.String()) {
		if !json.Valid([]byte(line)) || strings.ContainsAny(line, "\x1b\u202e\u2028") {
			t.Errorf("log line %q", line)
		}
	}
}

func TestUserNameCannotReachOtherRedisKeys(t *testing.T) {
	store := testbed.StartRedis(t)
	store.CLI("HSET", "imapgate:user:bob@example.org", "backend", "east")
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	store.CLI("HSET", "imapgate:user:paused@example.org", "backend", "east", "state", "paused")
	store.CLI("HSET", "imapgate:user:mallory@example.org", "backend", "east", "user", "bob@example.org")
	store.CLI("HSET", "imapgate:user:ssrf@example.org", "backend", "127.0.0.1:6379")
	rdb, err := routing.Dial(routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{store.Address}}})
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	m := openTestBackend(t)
	b := openHarness(t, m.addr(), func(s *harnessConfig) { s.redis, s.routes.Source = rdb, routing.SourceRedis })
	try := func(name, secret string) *client {
		c := b.dialGreeted("none")
		c.write("a LOGIN " + encodeLiteral(name) + " " + secret + "\r\n")
		return c
	}
	var denied []*client
	for _, name := range hostileNames {
		denied = append(denied, try(name, "right"))
	}
	wrong := try("bob", "wrong")
	blocked, unknown := try("blocked", "right"), try("unknown", "right")
	for _, c := range append(denied, wrong, blocked, unknown) {
		c.expectLine("a " + authFailedReply)
	}
	for name, why := range map[string]event.Reason{"paused": event.UserPaused, "mallory": event.RoutingUnavailable, "ssrf": event.RoutingUnavailable} {
		c := try(name, "right")
		c.expectLine("a " + unavailableReply)
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(why) {
			t.Errorf("%s: %v", name, r)
		}
	}
	for c, why := range map[*client]event.Reason{wrong: event.BadCredentials, blocked: event.UserBlocked, unknown: event.NoRoute, denied[0]: event.BadName} {
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(why) {
			t.Errorf("%v, want %s", r, why)
		}
	}
	try("Bob", "right").expectLine("a OK …")
	routes := 0
	for _, key := range strings.Fields(store.CLI("KEYS", "*")) {
		_, name, _ := strings.Cut(key, ":")
		switch kind, name, _ := strings.Cut(name, ":"); {
		case kind == "user":
			routes++
		case kind != "limit" && kind != "ban", strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789.-_@:/{}") != "":
			t.Errorf("a key %q", key)
		}
	}
	if routes != 5 {
		t.Errorf("%d users have records", routes)
	}
	testkit.Eventually(t, "the end of bob's session", func() bool { b.server.sessions.AbortAll(event.Drained); return b.server.Registry().Len() == 0 })
}

func TestUserNameIsNeverExpanded(t *testing.T) {
	backend := openScriptedBackend(t)
	b := newHarness(t, backend.l.Addr().String(), func(s *harnessConfig) { s.routes.Static.Default = "east" })
	c := b.dialGreeted("none")
	c.write("a LOGIN alice \"%u%{user}$(id){{.}}\\\\\"\r\n")
	login, err := backend.backendConn().ReadLogin()
	testkit.NoError(t, err)
	if login.Password != `%u%{user}$(id){{.}}\` || login.User != "alice@example.org" {
		t.Errorf("the backend got %+v", login)
	}
	testkit.NoError(t, backend.backendConn().Send(login.Tag+" OK [CAPABILITY IMAP4rev1] In."))
	c.expectLine("a OK …")
	backend.closeConn()
}

func TestClientInputNeverBecomesMetricLabel(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxBadCommands = 1000 })
	before := len(b.metrics())
	lines := strings.Count(b.metricsText(), "\n")
	c := b.dialGreeted("none")
	for i := range 100 {
		c.write(fmt.Sprintf("a AUTHENTICATE M%d =\r\n", i))
		c.expectLine("a NO Unsupported mechanism.")
	}
	for i := range 20 {
		c := b.dialGreeted("implicit")
		c.write(fmt.Sprintf("a LOGIN user%d wrong\r\n", i))
	}
	c.write("b LOGIN alice right\r\n")
	c.expectLine("b OK …")
	testkit.Eventually(t, "the logins to be counted", func() bool { return b.metrics()["imapgate_logins_total"] == 121 })
	if now := strings.Count(b.metricsText(), "\n"); now > lines+3 || len(b.metrics()) > before+1 { // the result of a first connect adds a series, once
		t.Errorf("%d lines of metrics became %d", lines, now)
	}
}

func TestNameSpellingsAreOneUser(t *testing.T) {
	backend := openScriptedBackend(t)
	b := newHarness(t, backend.l.Addr().String())
	for _, name := range []string{"alice", "ALICE", "Alice@Example.ORG", "alice@example.org", "aLiCe@EXAMPLE.org"} {
		c := b.dialGreeted("none")
		c.write("a LOGIN " + name + " right\r\n")
		login, err := backend.backendConn().ReadLogin()
		testkit.NoError(t, err)
		if login.User != "alice@example.org" {
			t.Errorf("%s is %s upstream", name, login.User)
		}
		testkit.NoError(t, backend.backendConn().Send(login.Tag+" OK [CAPABILITY IMAP4rev1] In."))
		c.expectLine("a OK …")
		if r := b.lastRecord("login_accepted", c); r.field("user") != "alice@example.org" || r.field("claimed") != "" {
			t.Error(r)
		}
		backend.closeConn()
	}
}

func TestClientCannotAuthorizeAsAnotherUser(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	var clients []*client
	for _, message := range []string{"carol\x00alice\x00right", "carol@example.org\x00frank\x00right", "*\x00alice\x00right", "gateway\x00alice\x00right", "\xff\x00alice\x00right"} {
		c := b.dialGreeted("none")
		c.write("a AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(message)) + "\r\n")
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.expectLine("a " + authFailedReply)
	}
	if b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was contacted")
	}
}
