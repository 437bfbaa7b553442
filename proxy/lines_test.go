package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/routing"
)

// lines are those of the ordinary log with a message.
func (b *bed) lines(msg string) (found []record) {
	for text := range strings.Lines(b.logs.String()) {
		var r record
		must(b.t, json.Unmarshal([]byte(text), &r))
		if r.field("msg") == msg {
			found = append(found, r)
		}
	}
	return found
}

func TestTheLogSaysWhyALoginWasRefused(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) {
		s.auth.Methods = []string{auth.File, auth.Passthrough}
		s.cfg.BadCommands = 10
	})
	for _, x := range []struct {
		listener, login, answer string
		want                    record
	}{
		{"none", "LOGIN alice wrong", deniedReply, record{"user": "alice@example.org", "backend": "east", "reason": "bad_credentials", "level": "info"}},
		{"none", "LOGIN nowhere wrong", deniedReply, record{"user": "nowhere@example.org", "backend": "", "reason": "no_route", "level": "info"}},
		{"none", "LOGIN frank wrong", deniedReply, record{"user": "frank@example.org", "backend": "", "reason": "bad_credentials"}},
		{"none", "LOGIN erin right", unavailableReply, record{"user": "erin@example.org", "backend": "gone", "reason": "backend_down", "level": "warn"}},
		{"none", "LOGIN {7+}\r\nal\x1bice! wrong", deniedReply, record{"user": "", "claimed": "", "reason": "bad_name"}},
		{"none", "LOGIN \"hunter!2\" \"\"", deniedReply, record{"user": "", "claimed": "", "reason": "bad_credentials"}},
		{"none", "AUTHENTICATE PLAIN " + coded("\x00alice\x00wrong"), deniedReply, record{"user": "alice@example.org", "mechanism": "AUTH=PLAIN", "reason": "bad_credentials"}},
		{"none", "AUTHENTICATE NTLM", "NO Unsupported mechanism.", record{"mechanism": "AUTH=NTLM", "reason": "bad_mechanism"}},
		{"none", "AUTHENTICATE PLAIN !", "BAD Invalid base64.", record{"mechanism": "AUTH=PLAIN", "reason": "bad_exchange"}},
	} {
		b.wantRefusalLine(b.greeted(x.listener), x.login, x.answer, x.want)
	}
	clear := b.dial("starttls")
	clear.hear("* OK …")
	b.wantRefusalLine(clear, "LOGIN alice right", "NO [PRIVACYREQUIRED] STARTTLS must come first.", record{"user": "", "reason": "cleartext", "listener": "starttls"})
	if all := b.logs.String(); strings.Contains(all, "hunter") || strings.Contains(all, `"err":""`) {
		t.Error(all)
	}
}

// wantRefusalLine logs in, in vain, and wants one line about it.
func (b *bed) wantRefusalLine(c *client, login, answer string, want record) {
	b.t.Helper()
	before := len(b.lines("login refused"))
	c.say("a " + login + "\r\n")
	c.hear("a " + answer)
	c.close()
	lines := b.lines("login refused")[before:]
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

func TestTheLogSaysThatLimitsAreHit(t *testing.T) {
	failures := guesses()
	failures.PerMinute, failures.PerUserTotal, failures.PerPairHour = 3, 9, 3
	b := newBed(t, openMailbox(t).addr(), limited(limit.Config{Failures: failures}))
	must(t, b.rooms.Limits.Ban(t.Context(), netip.MustParsePrefix("192.0.2.66/32"), time.Hour, ""))
	for range 40 {
		c := b.from("192.0.2.66")
		_ = c.rest()
		c.close()
	}
	within(t, "the refused connections to end", func() bool { return b.server.open.Load() == 0 })
	if lines := b.lines("limit hit"); len(lines) != 1 || lines[0].field("limit") != "banned" || lines[0].field("subject") != "192.0.2.66/32" {
		t.Errorf("40 connections of a banned address are %v", lines)
	}
	for n := range 5 {
		c := b.in("192.0.2.7")
		c.say(fmt.Sprintf("a LOGIN alice wrong%d\r\n", n))
		c.hear("a NO …")
		c.close()
	}
	last := b.lines("login refused")
	if r := last[len(last)-1]; r.field("reason") != "limit_reached" || r.field("limit") == "" || r.field("user") != "alice@example.org" || r.field("address") != "192.0.2.7" {
		t.Errorf("%v", r)
	}
	if hits := b.lines("limit hit"); !slices.ContainsFunc(hits, func(r record) bool { return strings.HasSuffix(r.field("limit"), "_failures") }) {
		t.Errorf("%v", hits)
	}
}

// flooding runs a test of floodLines in a bubble.
func flooding(t *testing.T, level zapcore.Level, test func(*floodLines)) *observer.ObservedLogs {
	t.Helper()
	core, said := observer.New(level)
	synctest.Test(t, func(*testing.T) {
		f := newFloodLines(zap.New(core), "logins refused")
		test(f)
		f.endMinute()
	})
	return said
}

func TestAFloodOfRefusedLoginsIsALineAMinute(t *testing.T) {
	const flood = 5000
	reasons := []audit.Reason{audit.BadCredentials, audit.NoRoute}
	said := flooding(t, zap.InfoLevel, func(f *floodLines) {
		for i := range flood {
			from := netip.AddrFrom4([4]byte{192, 0, 2, byte(i % 100)})
			f.write(zap.InfoLevel, "login refused", from, reasons[i%2], nil)
		}
		time.Sleep(linesEvery + time.Second)
		f.write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), audit.BadName, nil)
	})
	single, sums := said.FilterMessage("login refused").All(), said.FilterMessage("logins refused").All()
	if len(single) != maxLines+1 || len(sums) != 1 || single[maxLines].Time.Before(sums[0].Time) {
		t.Fatalf("%d lines and %d sums", len(single), len(sums))
	}
	sum := sums[0].ContextMap()
	counts := sum["reasons"].(map[audit.Reason]uint64)
	if sum["count"] != uint64(flood-maxLines) || counts[audit.BadCredentials]+counts[audit.NoRoute] != flood-maxLines || sum["addresses"] != int64(100) {
		t.Errorf("the sum is %v", sum)
	}
}

func TestASumIsAsSeriousAsWhatItCounts(t *testing.T) {
	said := flooding(t, zap.WarnLevel, func(f *floodLines) {
		for range 100 {
			f.write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), audit.BadCredentials, nil)
			f.write(zap.WarnLevel, "login refused", netip.MustParseAddr("192.0.2.1"), audit.BackendDown, nil)
		}
	})
	sums := said.FilterMessage("logins refused").All()
	if len(sums) != 1 || sums[0].ContextMap()["count"] != uint64(100-linesPerAddress) {
		t.Errorf("%v", sums)
	}
}

// Wrong passwords do not hide what is wrong with a backend: its lines are counted by
// themselves.
func TestWrongPasswordsHideNoBackendsError(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), withEveryMechanism(t, newAuthority(t)), quickDenials)
	for range maxLines + 1 {
		b.server.refused.write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.66"), audit.BadCredentials, nil)
		b.server.refused.write(zap.InfoLevel, "login refused", netip.AddrFrom4([4]byte{10, 0, 0, byte(b.server.refused.lines)}), audit.BadCredentials, nil)
	}
	if b.server.refused.lines != maxLines {
		t.Fatalf("%d lines", b.server.refused.lines)
	}
	s := &session{server: b.server, listener: b.server.listeners[0]}
	for range linesPerAddress + 1 {
		s.recordRefusal(&attempt{}, unavailable(audit.BackendDown), errors.New("connection refused"))
	}
	var warned int
	for _, r := range b.lines("login refused") {
		if r.field("level") == "warn" && r.field("error") == "connection refused" {
			warned++
		}
	}
	if warned != linesPerAddress {
		t.Errorf("%d lines about the backend", warned)
	}
	b.end()
	if sums := b.lines("logins unavailable"); len(sums) != 1 || sums[0].field("count") != "1" || sums[0].field("level") != "warn" {
		t.Errorf("%v", sums)
	}
}

func TestOneAddressTakesNotEveryLine(t *testing.T) {
	said := flooding(t, zap.InfoLevel, func(f *floodLines) {
		for i := range 1000 {
			from := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: byte(i)}) // of one /64
			f.write(zap.InfoLevel, "login refused", from, audit.BadCredentials, nil)
		}
		f.write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), audit.NoRoute, nil)
	})
	lines := said.FilterMessage("login refused").All()
	if len(lines) != linesPerAddress+1 {
		t.Errorf("%d lines", len(lines))
	}
}

func TestAFloodFromEverywhereIsCountedInBounds(t *testing.T) {
	said := flooding(t, zap.InfoLevel, func(f *floodLines) {
		for i := range 10_000 {
			f.write(zap.InfoLevel, "login refused", netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), audit.BadCredentials, nil)
		}
		if len(f.addresses) > maxCounted || len(f.single) > maxLines {
			t.Errorf("%d and %d addresses are kept", len(f.addresses), len(f.single))
		}
	})
	if said.Len() != maxLines+1 {
		t.Errorf("%d lines", said.Len())
	}
}

func TestAtDebugEveryRefusedLoginHasItsLine(t *testing.T) {
	said := flooding(t, zap.DebugLevel, func(f *floodLines) {
		for range 1000 {
			f.write(zap.InfoLevel, "login refused", netip.MustParseAddr("192.0.2.1"), audit.BadCredentials, nil)
		}
	})
	lines := said.FilterMessage("login refused")
	if n, atInfo := lines.Len(), lines.FilterLevelExact(zap.InfoLevel).Len(); n != 1000 || atInfo != linesPerAddress {
		t.Errorf("%d lines, %d of them at info", n, atInfo)
	}
}

// The reasons of a real Redis: the client hears the same of a user who is not there and of
// a wrong password, the log does not say the same.
func TestTheLogTellsAMissingRouteFromAWrongPassword(t *testing.T) {
	store := testbed.StartRedis(t)
	store.CLI("HSET", "imapgate:user:alice@example.org", "backend", "east")
	store.CLI("HSET", "imapgate:user:blocked@example.org", "backend", "east", "state", "blocked")
	store.CLI("HSET", "imapgate:user:paused@example.org", "backend", "east", "state", "paused")
	rdb, err := routing.Dial(routing.RedisConfig{Addresses: []string{store.Address}})
	must(t, err)
	t.Cleanup(func() { _ = rdb.Close() })
	b := openBed(t, openMailbox(t).addr(), func(s *setup) {
		s.redis, s.auth.Methods = rdb, []string{auth.Passthrough}
		s.routes = routing.Config{Source: routing.SourceRedis, Names: s.routes.Names, Prefix: "imapgate:"}
	})
	for _, x := range []struct{ user, answer, reason, backend string }{
		{"alice", deniedReply, "bad_credentials", "east"},
		{"nowhere", deniedReply, "no_route", ""},
		{"blocked", deniedReply, "user_blocked", ""},
		{"paused", unavailableReply, "user_paused", ""},
	} {
		b.wantRefusalLine(b.greeted("none"), "LOGIN "+x.user+" wrong", x.answer,
			record{"user": x.user + "@example.org", "reason": x.reason, "backend": x.backend})
	}
	store.Kill()
	b.wantRefusalLine(b.greeted("none"), "LOGIN stranger wrong", unavailableReply, record{"user": "stranger@example.org", "reason": "routing_unavailable"})
}
