package proxy

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/identity"
)

// recorded is what the record of a refused login says of who it was.
type recorded struct {
	user, claimed string
	reason        audit.Reason
}

const (
	notAName = "al ice!" // no account can have it
	octets   = "p\xe4ss" // Latin-1
)

// badPassword are the ways in which a name and a password are wrong, whichever mechanism
// brings them.
func badPassword() map[string]struct {
	name, password string
	want           recorded
} {
	return map[string]struct {
		name, password string
		want           recorded
	}{
		"wrong password":         {"carol", "wrong", recorded{"carol@example.org", "", audit.BadCredentials}},
		"Latin-1 password":       {"carol", octets, recorded{"carol@example.org", "", audit.BadCredentials}},
		"control in password":    {"carol", "a\x01b", recorded{"carol@example.org", "", audit.BadCredentials}},
		"long password":          {"carol", strings.Repeat("x", 1025), recorded{"carol@example.org", "", audit.BadCredentials}},
		"no password":            {"carol", "", recorded{"", "", audit.BadCredentials}},
		"bad name":               {notAName, "wrong", recorded{"", notAName, audit.BadName}},
		"bad name, Latin-1":      {"j\xf6rg", octets, recorded{"", `j\xf6rg`, audit.BadName}},
		"control in name":        {"a\x02b", "wrong", recorded{"", `a\x02b`, audit.BadName}},
		"bad name and password":  {notAName, "a\x01b", recorded{"", notAName, audit.BadName}},
		"long name":              {strings.Repeat("n", 400), "wrong", recorded{"", strings.Repeat("n", 253) + "…", audit.BadName}},
		"no name":                {"", "wrong", recorded{"", "", audit.BadName}},
		"bad name, no password":  {notAName, "", recorded{"", "", audit.BadCredentials}},
		"nobody":                 {"nobody", "wrong", recorded{"nobody@example.org", "", audit.BadCredentials}},
		"bidirectional override": {"\u202ealice", "wrong", recorded{"", `\u{202e}alice`, audit.BadName}},
	}
}

// carriers are the mechanisms that show a password.
func carriers() map[string]func(name, password string) string {
	return map[string]func(name, password string) string{
		"LOGIN":      func(n, p string) string { return fmt.Sprintf("LOGIN {%d+}\r\n%s {%d+}\r\n%s", len(n), n, len(p), p) },
		"AUTH=PLAIN": func(n, p string) string { return "AUTHENTICATE PLAIN " + coded("\x00"+n+"\x00"+p) },
		"AUTH=LOGIN": func(n, p string) string { return "AUTHENTICATE LOGIN\r\n" + coded(n) + "\r\n" + coded(p) },
	}
}

func TestARefusedLoginIsOnRecordAlikeByEveryMechanismThatShowsAPassword(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), withEveryMechanism(t, newAuthority(t)), quickDenials)
	for what, bad := range badPassword() {
		for mechanism, say := range carriers() {
			b.wantWho(b.comes("192.0.2.7", nil), line("", say(bad.name, bad.password)), mechanism+", "+what, mechanism, bad.want)
		}
	}
}

// wantWho logs in, in vain, and wants the record to say who it was.
func (b *bed) wantWho(c *client, p phone, what, mechanism string, want recorded) {
	b.t.Helper()
	defer c.close()
	if answer, err := p.logs(c); err != nil || strings.HasPrefix(answer, "OK ") {
		b.t.Errorf("%s: %q, %v", what, answer, err)
		return
	}
	r := b.lastRecord("login_refused", c)
	got := recorded{r.field("user"), r.field("claimed"), audit.Reason(r.field("reason"))}
	if got != want {
		b.t.Errorf("%s: the record has %q, want %q", what, got, want)
	}
	if r.field("attempt") != "1" || r.field("mechanism") != mechanism {
		b.t.Errorf("%s: attempt %q, mechanism %q", what, r.field("attempt"), r.field("mechanism"))
	}
}

// quickDenials answers at once: the tables are long.
func quickDenials(s *setup) {
	s.server = func(srv *Server) { srv.floor, srv.jitter = 0, 1 }
}

// With the parts of its message in the wrong order, or another user's name first, the
// password may stand where the name belongs.
func TestAPasswordInTheNamesPlaceIsNotOnRecord(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), withEveryMechanism(t, newAuthority(t)), quickDenials)
	for _, pw := range []string{"hunter2", "Hunter!2 "} {
		for what, text := range map[string]string{
			"name, password, nothing":      "AUTHENTICATE PLAIN " + coded("carol\x00"+pw+"\x00"),
			"name, password, name":         "AUTHENTICATE PLAIN " + coded("carol\x00"+pw+"\x00carol"),
			"name, password, another":      "AUTHENTICATE PLAIN " + coded("carol\x00"+pw+"\x00admin"),
			"name, password":               "AUTHENTICATE PLAIN " + coded("carol\x00"+pw),
			"nothing, name, password, one": "AUTHENTICATE PLAIN " + coded("\x00carol\x00"+pw+"\x00x"),
			"no mechanism":                 "AUTHENTICATE " + strings.TrimRight(coded("\x00carol\x00"+pw), "="),
			"as the mechanism's response":  "AUTHENTICATE PLAIN " + coded(pw),
			"token first":                  "AUTHENTICATE XOAUTH2 " + coded("auth=Bearer "+pw+"\x01user=carol\x01") + "\r\n",
			"token as the form":            "AUTHENTICATE OAUTHBEARER " + coded(pw) + "\r\n",
			"token in the name's field":    "AUTHENTICATE OAUTHBEARER " + coded("n,"+pw+",\x01auth=Bearer x\x01\x01") + "\r\n",
		} {
			c := b.comes("192.0.2.7", nil)
			answer, err := line("", text).logs(c)
			if err != nil || strings.HasPrefix(answer, "OK ") {
				t.Errorf("%s: %q, %v", what, answer, err)
			}
			r := b.lastRecord("login_refused", c)
			if all := strings.ToLower(fmt.Sprint(r)); strings.Contains(all, "hunter") || strings.Contains(all, strings.ToLower(coded(pw)[:8])) || r.field("attempt") != "1" {
				t.Errorf("%s: %v", what, r)
			}
			c.close()
		}
	}
	if logs := strings.ToLower(b.logs.String()); strings.Contains(logs, "hunter") {
		t.Error("the ordinary log has the password")
	}
}

func TestARefusedLoginIsOnRecordAlikeByTheMechanismsWithoutAPassword(t *testing.T) {
	ca := newAuthority(t)
	b := newBed(t, openMailbox(t).addr(), withEveryMechanism(t, ca), quickDenials, func(s *setup) {
		s.asked.OAuth = func(context.Context, identity.Secret) (string, time.Time, error) {
			return "", time.Time{}, auth.ErrDenied
		}
	})
	xoauth := func(name, token string) string {
		return "AUTHENTICATE XOAUTH2 " + coded("user="+name+"\x01auth=Bearer "+token+"\x01\x01")
	}
	bearer := func(name, token string) string {
		return "AUTHENTICATE OAUTHBEARER " + coded("n,a="+name+",\x01auth=Bearer "+token+"\x01\x01")
	}
	carol, nobody := "carol@example.org", recorded{"", "", audit.BadCredentials}
	for _, x := range []struct {
		what, mechanism, text string
		want                  recorded
	}{
		{"wrong token", auth.SASLXOAuth2, xoauth("carol", "wrong") + "\r\n", recorded{carol, "", audit.BadCredentials}},
		{"no token", auth.SASLXOAuth2, xoauth("carol", "") + "\r\n", recorded{"", "", audit.BadCredentials}},
		{"Latin-1 token", auth.SASLXOAuth2, xoauth("carol", octets) + "\r\n", recorded{carol, "", audit.BadCredentials}},
		{"long token", auth.SASLXOAuth2, xoauth("carol", strings.Repeat("x", 16<<10+1)), recorded{carol, "", audit.BadExchange}},
		{"bad name", auth.SASLXOAuth2, xoauth(notAName, "wrong") + "\r\n", recorded{"", notAName, audit.BadName}},
		{"control in name", auth.SASLXOAuth2, xoauth("a\tb", "wrong") + "\r\n", recorded{"", `a\x09b`, audit.BadName}},
		{"bad name and token", auth.SASLXOAuth2, xoauth(notAName, octets) + "\r\n", recorded{"", notAName, audit.BadName}},
		{"no name", auth.SASLXOAuth2, xoauth("", "wrong") + "\r\n", recorded{"", "", audit.BadName}},
		{"no form", auth.SASLXOAuth2, "AUTHENTICATE XOAUTH2 " + coded("carol") + "\r\n", nobody},
		{"wrong token", auth.SASLOAuthBearer, bearer("carol", "wrong") + "\r\n", recorded{carol, "", audit.BadCredentials}},
		{"Latin-1 token", auth.SASLOAuthBearer, bearer("carol", octets) + "\r\n", recorded{carol, "", audit.BadCredentials}},
		{"long token", auth.SASLOAuthBearer, bearer("carol", strings.Repeat("x", 16<<10+1)), recorded{carol, "", audit.BadExchange}},
		{"bad name", auth.SASLOAuthBearer, bearer(notAName, "wrong") + "\r\n", recorded{"", notAName, audit.BadName}},
		{"bad escape", auth.SASLOAuthBearer, bearer("a=b", "wrong") + "\r\n", recorded{"", "a=b", audit.BadName}},
		{"no name", auth.SASLOAuthBearer, "AUTHENTICATE OAUTHBEARER " + coded("n,,\x01auth=Bearer wrong\x01\x01") + "\r\n", nobody},
		{"unknown mechanism", "AUTH=CRAM-MD5", "AUTHENTICATE CRAM-MD5", recorded{"", "", audit.BadMechanism}},
		{"cancelled", "AUTH=LOGIN", "AUTHENTICATE LOGIN\r\n" + coded("carol") + "\r\n*", recorded{"", "", audit.BadExchange}},
		{"not base64", "AUTH=LOGIN", "AUTHENTICATE LOGIN\r\n" + coded("carol") + "\r\n!", recorded{"", "", audit.BadExchange}},
		{"cancelled", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + coded("n,,n=carol,r=abc") + "\r\n*", recorded{carol, "", audit.BadExchange}},
		{"as another", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + coded("n,a=frank,n=carol,r=abc"), recorded{carol, "", audit.BadCredentials}},
		{"wrong binding", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + coded("p=tls-exporter,,n=carol,r=abc"), recorded{carol, "", audit.BadCredentials}},
		{"no form", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + coded("carol"), nobody},
	} {
		b.wantWho(b.comes("192.0.2.7", nil), line("", x.text), x.mechanism+", "+x.what, x.mechanism, x.want)
	}
	for name, want := range map[string]recorded{"carol": {carol, "", audit.BadCredentials}, notAName: {"", notAName, audit.BadName}, "a!b": {"", "a!b", audit.BadName}} {
		b.wantWho(b.comes("192.0.2.7", nil), scrams("", name, "wrong"), "SCRAM of "+name, "AUTH=SCRAM-SHA-256", want)
	}
	for _, x := range []struct {
		what, response string
		names          []string
		want           recorded
	}{
		{"as another", coded("frank"), []string{carol}, recorded{carol, "", audit.BadCredentials}},
		{"bad name", "=", []string{"a!b@example.org"}, recorded{"", "a!b@example.org", audit.BadName}},
		{"two names", "=", []string{carol, "frank@example.org"}, nobody},
	} {
		cert := ca.issue(x.names, nil)
		b.wantWho(b.comes("192.0.2.7", &cert), line("", "AUTHENTICATE EXTERNAL "+x.response), "EXTERNAL, "+x.what, "AUTH=EXTERNAL", x.want)
	}
}
