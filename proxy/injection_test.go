package proxy

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode"

	"imapgate/internal/audit"
	"imapgate/internal/testbed"
	"imapgate/routing"
)

// The rows of the catalogues "injection" and "identity".

// hostileNames are names that no account has.
var hostileNames = []string{
	"u\r\nX DELETE INBOX", "u\nX", "u\rX", "u\x00v", "\x1b[2J", "u\x7f", "x\"} {\"event\":\"login_accepted\",\"user\":\"admin",
	"\u2028", "\u202ealice", "\xff\xfe", "*", "a:b", "{x}", "}{", "alice\r\nSET route:bob evil\r\n", "../", "%{user}%u$(id){{.}}",
	" alice", "alice ", "\u212A", "\u0130", "\u0131", "\uff41lice", "stra\u00dfe", "e\u0301", "a\u200db", "alice%40ex.com", "alice@ex.com@evil",
	"alice@ex.com.", "\"alice\"@ex", "alice+x@ex", "a/b", "@", "alice@", "@example.org", "victim*master", "*master", "victim*", "a*b*c",
	strings.Repeat("a", 321), strings.Repeat("a", 7000),
}

func literal(text string) string { return fmt.Sprintf("{%d+}\r\n%s", len(text), text) }

func TestD1E1HostileNamesAreRefusedBeforeAnybodyIsAsked(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) {
		s.cfg.AuthAttempts = 1 << 20
		s.routes.Static.Default = "east"
	})
	var clients []*client
	for _, name := range hostileNames { // each on its own connection: a denial takes its time
		c := b.greeted("none")
		c.say("a LOGIN " + literal(name) + " right\r\n")
		clients = append(clients, c)
		c = b.greeted("implicit")
		c.say("a AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+name+"\x00right")) + "\r\n")
		if len(name) > 6000 {
			c.close() // base64 makes the line too long
			continue
		}
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.hear("a " + deniedReply)
	}
	if m.open() > 0 || m.text() != "" || b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was asked")
	}
	b.end()
	for line := range strings.Lines(b.logs.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("log line %q", line)
		}
	}
	for _, r := range b.records() { // which are lines of JSON
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

func TestD1HostilePasswordsAreRefusedBeforeAnybodyIsAsked(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr())
	var clients []*client
	for _, secret := range []string{"pw\r\nX DELETE INBOX", "pw\n", "\rpw", "p\x00w", "pw\x1b", "pw\x7f", "\xe4\t", strings.Repeat("x", 1025), ""} {
		c := b.greeted("none")
		c.say("a LOGIN alice " + literal(secret) + "\r\n")
		clients = append(clients, c)
		c = b.greeted("none")
		c.say("a AUTHENTICATE LOGIN YWxpY2U=\r\n")
		c.hear("+ …")
		c.say(base64.StdEncoding.EncodeToString([]byte(secret)) + "\r\n")
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.hear("a " + deniedReply)
	}
	if m.open() > 0 || b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was asked")
	}
}

func TestD2BytesBehindTheLoginAreNobodysBusiness(t *testing.T) {
	backend := openScripted(t)
	b := newBed(t, backend.l.Addr().String())
	odd := "b NOOP\nc\rd {5}\ne ~{5}\r\nf {5+}\r\n\x00\xff\"\\\r\ng \"…\\\r\n\r\n" + strings.Repeat("x", 20_000) + "\n"
	for _, listener := range []string{"none", "starttls", "implicit"} {
		c := b.greeted(listener)
		c.say("a LOGIN alice right\r\n" + odd)
		login, err := backend.side().login()
		must(t, err)
		must(t, backend.side().say(login.tag+" OK [CAPABILITY IMAP4rev1] In."))
		c.hear("a OK …")
		c.say(odd)
		got := make([]byte, 2*len(odd))
		for n := 0; n < len(got); {
			k, err := backend.side().r.Read(got[n:])
			must(t, err)
			n += k
		}
		if string(got) != odd+odd {
			t.Errorf("%s: the backend got %.100q", listener, got)
		}
		must(t, backend.side().say(odd))
		for n := 0; n < len(odd)+2; {
			k, err := c.r.Read(got)
			must(t, err)
			n += k
		}
		c.close()
		backend.hangUp()
	}
}

func TestD3WordsOfAClientInErrorsOfTLSForgeNoLine(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
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
	b.end()
	for line := range strings.Lines(b.logs.String()) {
		if !json.Valid([]byte(line)) || strings.ContainsAny(line, "\x1b\u202e\u2028") {
			t.Errorf("log line %q", line)
		}
	}
}

func TestD4NoNameReachesAKeyOfRedisThatIsNotItsOwn(t *testing.T) {
	store := testbed.StartRedis(t)
	store.CLI("HSET", "imapgate:user:bob@example.org", "backend", "east")
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	store.CLI("HSET", "imapgate:user:paused@example.org", "backend", "east", "state", "paused")
	store.CLI("HSET", "imapgate:user:mallory@example.org", "backend", "east", "user", "bob@example.org")
	store.CLI("HSET", "imapgate:user:ssrf@example.org", "backend", "127.0.0.1:6379")
	rdb, err := routing.Dial(routing.RedisConfig{Addresses: []string{store.Address}})
	must(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	m := openMailbox(t)
	b := openBed(t, m.addr(), func(s *setup) { s.redis, s.routes.Source = rdb, routing.SourceRedis })
	try := func(name, secret string) *client {
		c := b.greeted("none")
		c.say("a LOGIN " + literal(name) + " " + secret + "\r\n")
		return c
	}
	var denied []*client
	for _, name := range hostileNames {
		denied = append(denied, try(name, "right"))
	}
	wrong := try("bob", "wrong")
	blocked, unknown := try("blocked", "right"), try("nobody", "right")
	for _, c := range append(denied, wrong, blocked, unknown) {
		c.hear("a " + deniedReply)
	}
	for name, why := range map[string]audit.Reason{"paused": audit.UserPaused, "mallory": audit.RoutesAway, "ssrf": audit.RoutesAway} {
		c := try(name, "right")
		c.hear("a " + unavailableReply)
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(why) {
			t.Errorf("%s: %v", name, r)
		}
	}
	for c, why := range map[*client]audit.Reason{wrong: audit.BadCredentials, blocked: audit.UserBlocked, unknown: audit.NoRoute, denied[0]: audit.BadName} {
		if r := b.lastRecord("login_refused", c); r.field("reason") != string(why) {
			t.Errorf("%v, want %s", r, why)
		}
	}
	try("Bob", "right").hear("a OK …")
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
	within(t, "the end of bob's session", func() bool { b.server.Close(); return b.server.Sessions() == 0 })
}

func TestD5ANameIsExpandedByNobody(t *testing.T) {
	backend := openScripted(t)
	b := newBed(t, backend.l.Addr().String(), func(s *setup) { s.routes.Static.Default = "east" })
	c := b.greeted("none")
	c.say("a LOGIN alice \"%u%{user}$(id){{.}}\\\\\"\r\n")
	login, err := backend.side().login()
	must(t, err)
	if login.password != `%u%{user}$(id){{.}}\` || login.user != "alice@example.org" {
		t.Errorf("the backend got %+v", login)
	}
	must(t, backend.side().say(login.tag+" OK [CAPABILITY IMAP4rev1] In."))
	c.hear("a OK …")
	backend.hangUp()
}

func TestD8NoClientMakesALabelOfAMetric(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.BadCommands = 1000 })
	before := len(b.metrics())
	lines := strings.Count(b.scrape(), "\n")
	c := b.greeted("none")
	for i := range 100 {
		c.say(fmt.Sprintf("a AUTHENTICATE M%d =\r\n", i))
		c.hear("a NO Unsupported mechanism.")
	}
	for i := range 20 {
		c := b.greeted("implicit")
		c.say(fmt.Sprintf("a LOGIN user%d wrong\r\n", i))
	}
	c.say("b LOGIN alice right\r\n")
	c.hear("b OK …")
	within(t, "the logins to be counted", func() bool { return b.metrics()["imapgate_logins_total"] == 121 })
	if now := strings.Count(b.scrape(), "\n"); now > lines+3 || len(b.metrics()) > before+1 { // a connect's result is new, once
		t.Errorf("%d lines of metrics became %d", lines, now)
	}
}

func TestE1EverySpellingOfANameIsOneUserEverywhere(t *testing.T) {
	backend := openScripted(t)
	b := newBed(t, backend.l.Addr().String())
	for _, name := range []string{"alice", "ALICE", "Alice@Example.ORG", "alice@example.org", "aLiCe@EXAMPLE.org"} {
		c := b.greeted("none")
		c.say("a LOGIN " + name + " right\r\n")
		login, err := backend.side().login()
		must(t, err)
		if login.user != "alice@example.org" {
			t.Errorf("%s is %s upstream", name, login.user)
		}
		must(t, backend.side().say(login.tag+" OK [CAPABILITY IMAP4rev1] In."))
		c.hear("a OK …")
		if r := b.lastRecord("login_accepted", c); r.field("user") != "alice@example.org" || r.field("claimed") != "" {
			t.Error(r)
		}
		backend.hangUp()
	}
}

func TestE2NobodyActsForSomebodyElse(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr())
	var clients []*client
	for _, message := range []string{"carol\x00alice\x00right", "carol@example.org\x00frank\x00right", "*\x00alice\x00right", "gateway\x00alice\x00right", "\xff\x00alice\x00right"} {
		c := b.greeted("none")
		c.say("a AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte(message)) + "\r\n")
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.hear("a " + deniedReply)
	}
	if b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was asked")
	}
}
