package proxy

import (
	"encoding/json"
	"fmt"
	"imapgate/auth"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/routing"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// logLines returns the lines of the ordinary log with a message.
func (b *harness) logLines(msg string) (found []auditRecord) {
	for text := range strings.Lines(b.logs.String()) {
		var r auditRecord
		testkit.NoError(b.t, json.Unmarshal([]byte(text), &r))
		if r.field("msg") == msg {
			found = append(found, r)
		}
	}
	return found
}

func TestLogContainsRefusalReason(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) {
		s.auth.Methods = []string{auth.File, auth.Passthrough}
		s.cfg.MaxBadCommands = 10
	})
	for _, x := range []struct {
		listener, login, answer string
		want                    auditRecord
	}{
		{"none", "LOGIN alice wrong", authFailedReply, auditRecord{"user": "alice@example.org", "backend": "east", "reason": "bad_credentials", "level": "info"}},
		{"none", "LOGIN nowhere wrong", authFailedReply, auditRecord{"user": "nowhere@example.org", "backend": "", "reason": "no_route", "level": "info"}},
		{"none", "LOGIN frank wrong", authFailedReply, auditRecord{"user": "frank@example.org", "backend": "", "reason": "bad_credentials"}},
		{"none", "LOGIN erin right", unavailableReply, auditRecord{"user": "erin@example.org", "backend": "gone", "reason": "backend_down", "level": "warn"}},
		{"none", "LOGIN {7+}\r\nal\x1bice! wrong", authFailedReply, auditRecord{"user": "", "claimed": "", "reason": "bad_name"}},
		{"none", "LOGIN \"hunter!2\" \"\"", authFailedReply, auditRecord{"user": "", "claimed": "", "reason": "bad_credentials"}},
		{"none", "AUTHENTICATE PLAIN " + encodeBase64("\x00alice\x00wrong"), authFailedReply, auditRecord{"user": "alice@example.org", "mechanism": "AUTH=PLAIN", "reason": "bad_credentials"}},
		{"none", "AUTHENTICATE NTLM", "NO Unsupported mechanism.", auditRecord{"mechanism": "AUTH=NTLM", "reason": "bad_mechanism"}},
		{"none", "AUTHENTICATE PLAIN !", "BAD Invalid base64.", auditRecord{"mechanism": "AUTH=PLAIN", "reason": "bad_exchange"}},
	} {
		b.expectRefusalLine(b.dialGreeted(x.listener), x.login, x.answer, x.want)
	}
	clear := b.dial("starttls")
	clear.expectLine("* OK …")
	b.expectRefusalLine(clear, "LOGIN alice right", "NO [PRIVACYREQUIRED] STARTTLS must come first.", auditRecord{"user": "", "reason": "cleartext", "listener": "starttls"})
	if all := b.logs.String(); strings.Contains(all, "hunter") || strings.Contains(all, `"err":""`) {
		t.Error(all)
	}
}

// expectRefusalLine sends a login that fails, and expects one line about it.
func (b *harness) expectRefusalLine(c *client, login, answer string, want auditRecord) {
	b.t.Helper()
	before := len(b.logLines("login refused"))
	c.write("a " + login + "\r\n")
	c.expectLine("a " + answer)
	c.close()
	lines := b.logLines("login refused")[before:]
	if len(lines) != 1 {
		b.t.Fatalf("%q: %d lines", login, len(lines))
	}
	for key, value := range want {
		if got := lines[0].field(key); got != value {
			b.t.Errorf("%q: %s is %q, want %q", login, key, got, value)
		}
	}
	if lines[0].field("address") != "127.0.0.1" || lines[0].field("session") == "" || lines[0].field("listener") == "" {
		b.t.Errorf("%q: %v", login, lines[0])
	}
}

func TestLogContainsLimitHits(t *testing.T) {
	failures := failureLimits()
	failures.PerMinute, failures.PerUserDay, failures.PerUserNetworkHour = 3, 9, 3
	b := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{Failures: failures}}))
	testkit.NoError(t, b.deps.Limits.Ban(t.Context(), netip.MustParsePrefix("192.0.2.66/32"), time.Hour, ""))
	for range 40 {
		c := b.dialFrom("192.0.2.66")
		_ = c.readAll()
		c.close()
	}
	testkit.Eventually(t, "the refused connections to end", func() bool { return b.server.openConns.Load() == 0 })
	if lines := b.logLines("limit hit"); len(lines) != 1 || lines[0].field("limit") != "banned" || lines[0].field("subject") != "192.0.2.66/32" {
		t.Errorf("40 connections of a banned address are %v", lines)
	}
	for n := range 5 {
		c := b.dialGreetedFrom("192.0.2.7")
		c.write(fmt.Sprintf("a LOGIN alice wrong%d\r\n", n))
		c.expectLine("a NO …")
		c.close()
	}
	last := b.logLines("login refused")
	if r := last[len(last)-1]; r.field("reason") != "limit_reached" || r.field("limit") == "" || r.field("user") != "alice@example.org" || r.field("address") != "192.0.2.7" {
		t.Errorf("%v", r)
	}
	if hits := b.logLines("limit hit"); !slices.ContainsFunc(hits, func(r auditRecord) bool { return strings.HasSuffix(r.field("limit"), "_failures") }) {
		t.Errorf("%v", hits)
	}
}

// With a real Redis, an unknown user and a wrong password get the same answer, but
// different reasons in the log.
func TestLogDistinguishesMissingRouteFromWrongPassword(t *testing.T) {
	store := testbed.StartRedis(t)
	store.CLI("HSET", "imapgate:user:alice@example.org", "backend", "east")
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	store.CLI("HSET", "imapgate:user:paused@example.org", "backend", "east", "state", "paused")
	rdb, err := routing.Dial(routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{store.Address}}})
	testkit.NoError(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	b := openHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		s.redis, s.auth.Methods = rdb, []string{auth.Passthrough}
		s.routes = routing.Config{Settings: routing.Settings{Source: routing.SourceRedis}, Names: s.routes.Names, Prefix: "imapgate:"}
	})
	for _, x := range []struct{ user, answer, reason, backend string }{
		{"alice", authFailedReply, "bad_credentials", "east"},
		{"nowhere", authFailedReply, "no_route", ""},
		{"blocked", authFailedReply, "user_blocked", ""},
		{"paused", unavailableReply, "user_paused", ""},
	} {
		b.expectRefusalLine(b.dialGreeted("none"), "LOGIN "+x.user+" wrong", x.answer,
			auditRecord{"user": x.user + "@example.org", "reason": x.reason, "backend": x.backend})
	}
	store.Kill()
	b.expectRefusalLine(b.dialGreeted("none"), "LOGIN unseen wrong", unavailableReply, auditRecord{"user": "unseen@example.org", "reason": "routing_unavailable"})
}
