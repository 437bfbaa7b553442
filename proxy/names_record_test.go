package proxy

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// recordedLogin is what the record of a refused login contains about the user.
type recordedLogin struct {
	user, claimed string
	reason        event.Reason
}

const (
	invalidName    = "al ice!" // no account can have it
	latin1Password = "p\xe4ss" // Latin-1
)

// badLogins returns wrong names and passwords, for any mechanism.
func badLogins() map[string]struct {
	name, password string
	want           recordedLogin
} {
	return map[string]struct {
		name, password string
		want           recordedLogin
	}{
		"wrong password":         {"carol", "wrong", recordedLogin{"carol@example.org", "", event.BadCredentials}},
		"Latin-1 password":       {"carol", latin1Password, recordedLogin{"carol@example.org", "", event.BadCredentials}},
		"control in password":    {"carol", "a\x01b", recordedLogin{"carol@example.org", "", event.BadCredentials}},
		"long password":          {"carol", strings.Repeat("x", 1025), recordedLogin{"carol@example.org", "", event.BadCredentials}},
		"no password":            {"carol", "", recordedLogin{"", "", event.BadCredentials}},
		"bad name":               {invalidName, "wrong", recordedLogin{"", invalidName, event.BadName}},
		"bad name, Latin-1":      {"j\xf6rg", latin1Password, recordedLogin{"", `j\xf6rg`, event.BadName}},
		"control in name":        {"a\x02b", "wrong", recordedLogin{"", `a\x02b`, event.BadName}},
		"bad name and password":  {invalidName, "a\x01b", recordedLogin{"", invalidName, event.BadName}},
		"long name":              {strings.Repeat("n", 400), "wrong", recordedLogin{"", strings.Repeat("n", 253) + "…", event.BadName}},
		"no name":                {"", "wrong", recordedLogin{"", "", event.BadName}},
		"bad name, no password":  {invalidName, "", recordedLogin{"", "", event.BadCredentials}},
		"unknown":                {"unknown", "wrong", recordedLogin{"unknown@example.org", "", event.BadCredentials}},
		"bidirectional override": {"\u202ealice", "wrong", recordedLogin{"", `\u{202e}alice`, event.BadName}},
	}
}

// passwordCommands returns the mechanisms that send a password.
func passwordCommands() map[string]func(name, password string) string {
	return map[string]func(name, password string) string{
		"LOGIN":      func(n, p string) string { return fmt.Sprintf("LOGIN {%d+}\r\n%s {%d+}\r\n%s", len(n), n, len(p), p) },
		"AUTH=PLAIN": func(n, p string) string { return "AUTHENTICATE PLAIN " + encodeBase64("\x00"+n+"\x00"+p) },
		"AUTH=LOGIN": func(n, p string) string { return "AUTHENTICATE LOGIN\r\n" + encodeBase64(n) + "\r\n" + encodeBase64(p) },
	}
}

func TestPasswordMechanismsRecordRefusalsAlike(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, newTestCA(t)), withoutDenialDelay)
	for what, bad := range badLogins() {
		for mechanism, command := range passwordCommands() {
			b.expectRecordedLogin(b.dialAs("192.0.2.7", nil), lineClient("", command(bad.name, bad.password)), mechanism+", "+what, mechanism, bad.want)
		}
	}
}

// expectRecordedLogin sends a login that fails, and expects the user in its record.
func (b *harness) expectRecordedLogin(c *client, p repeatingClient, what, mechanism string, want recordedLogin) {
	b.t.Helper()
	defer c.close()
	if answer, err := p.login(c); err != nil || strings.HasPrefix(answer, "OK ") {
		b.t.Errorf("%s: %q, %v", what, answer, err)
		return
	}
	r := b.lastRecord("login_refused", c)
	got := recordedLogin{r.field("user"), r.field("claimed"), event.Reason(r.field("reason"))}
	if got != want {
		b.t.Errorf("%s: the record has %q, want %q", what, got, want)
	}
	if r.field("attempt") != "1" || r.field("mechanism") != mechanism {
		b.t.Errorf("%s: attempt %q, mechanism %q", what, r.field("attempt"), r.field("mechanism"))
	}
}

// withoutDenialDelay removes the minimum denial time: the tables are long.
func withoutDenialDelay(s *harnessConfig) {
	s.changeServer = func(srv *Server) { srv.logins.MinDenialTime, srv.logins.DenialJitter = 0, 1 }
}

// With the parts of a message in the wrong order, or another user's name first, the
// password may be in the place of the name.
func TestPasswordInNameFieldIsNotRecorded(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, newTestCA(t)), withoutDenialDelay)
	for _, pw := range []string{"hunter2", "Hunter!2 "} {
		for what, text := range map[string]string{
			"name, password, nothing":      "AUTHENTICATE PLAIN " + encodeBase64("carol\x00"+pw+"\x00"),
			"name, password, name":         "AUTHENTICATE PLAIN " + encodeBase64("carol\x00"+pw+"\x00carol"),
			"name, password, another":      "AUTHENTICATE PLAIN " + encodeBase64("carol\x00"+pw+"\x00admin"),
			"name, password":               "AUTHENTICATE PLAIN " + encodeBase64("carol\x00"+pw),
			"nothing, name, password, one": "AUTHENTICATE PLAIN " + encodeBase64("\x00carol\x00"+pw+"\x00x"),
			"no mechanism":                 "AUTHENTICATE " + strings.TrimRight(encodeBase64("\x00carol\x00"+pw), "="),
			"as the mechanism's response":  "AUTHENTICATE PLAIN " + encodeBase64(pw),
			"token first":                  "AUTHENTICATE XOAUTH2 " + encodeBase64("auth=Bearer "+pw+"\x01user=carol\x01") + "\r\n",
			"token as the form":            "AUTHENTICATE OAUTHBEARER " + encodeBase64(pw) + "\r\n",
			"token in the name's field":    "AUTHENTICATE OAUTHBEARER " + encodeBase64("n,"+pw+",\x01auth=Bearer x\x01\x01") + "\r\n",
		} {
			c := b.dialAs("192.0.2.7", nil)
			answer, err := lineClient("", text).login(c)
			if err != nil || strings.HasPrefix(answer, "OK ") {
				t.Errorf("%s: %q, %v", what, answer, err)
			}
			r := b.lastRecord("login_refused", c)
			if all := strings.ToLower(fmt.Sprint(r)); strings.Contains(all, "hunter") || strings.Contains(all, strings.ToLower(encodeBase64(pw)[:8])) || r.field("attempt") != "1" {
				t.Errorf("%s: %v", what, r)
			}
			c.close()
		}
	}
	if logs := strings.ToLower(b.logs.String()); strings.Contains(logs, "hunter") {
		t.Error("the ordinary log has the password")
	}
}

func TestPasswordlessMechanismsRecordRefusalsAlike(t *testing.T) {
	ca := newTestCA(t)
	b := newHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, ca), withoutDenialDelay, func(s *harnessConfig) {
		s.authSources.OAuth = func(context.Context, identity.Secret) (string, time.Time, error) {
			return "", time.Time{}, auth.ErrDenied
		}
	})
	xoauth := func(name, token string) string {
		return "AUTHENTICATE XOAUTH2 " + encodeBase64("user="+name+"\x01auth=Bearer "+token+"\x01\x01")
	}
	bearer := func(name, token string) string {
		return "AUTHENTICATE OAUTHBEARER " + encodeBase64("n,a="+name+",\x01auth=Bearer "+token+"\x01\x01")
	}
	carol, noUser := "carol@example.org", recordedLogin{"", "", event.BadCredentials}
	for _, x := range []struct {
		what, mechanism, text string
		want                  recordedLogin
	}{
		{"wrong token", auth.SASLXOAuth2, xoauth("carol", "wrong") + "\r\n", recordedLogin{carol, "", event.BadCredentials}},
		{"no token", auth.SASLXOAuth2, xoauth("carol", "") + "\r\n", recordedLogin{"", "", event.BadCredentials}},
		{"Latin-1 token", auth.SASLXOAuth2, xoauth("carol", latin1Password) + "\r\n", recordedLogin{carol, "", event.BadCredentials}},
		{"long token", auth.SASLXOAuth2, xoauth("carol", strings.Repeat("x", 16<<10+1)), recordedLogin{carol, "", event.BadExchange}},
		{"bad name", auth.SASLXOAuth2, xoauth(invalidName, "wrong") + "\r\n", recordedLogin{"", invalidName, event.BadName}},
		{"control in name", auth.SASLXOAuth2, xoauth("a\tb", "wrong") + "\r\n", recordedLogin{"", `a\x09b`, event.BadName}},
		{"bad name and token", auth.SASLXOAuth2, xoauth(invalidName, latin1Password) + "\r\n", recordedLogin{"", invalidName, event.BadName}},
		{"no name", auth.SASLXOAuth2, xoauth("", "wrong") + "\r\n", recordedLogin{"", "", event.BadName}},
		{"no form", auth.SASLXOAuth2, "AUTHENTICATE XOAUTH2 " + encodeBase64("carol") + "\r\n", noUser},
		{"wrong token", auth.SASLOAuthBearer, bearer("carol", "wrong") + "\r\n", recordedLogin{carol, "", event.BadCredentials}},
		{"Latin-1 token", auth.SASLOAuthBearer, bearer("carol", latin1Password) + "\r\n", recordedLogin{carol, "", event.BadCredentials}},
		{"long token", auth.SASLOAuthBearer, bearer("carol", strings.Repeat("x", 16<<10+1)), recordedLogin{carol, "", event.BadExchange}},
		{"bad name", auth.SASLOAuthBearer, bearer(invalidName, "wrong") + "\r\n", recordedLogin{"", invalidName, event.BadName}},
		{"bad escape", auth.SASLOAuthBearer, bearer("a=b", "wrong") + "\r\n", recordedLogin{"", "a=b", event.BadName}},
		{"no name", auth.SASLOAuthBearer, "AUTHENTICATE OAUTHBEARER " + encodeBase64("n,,\x01auth=Bearer wrong\x01\x01") + "\r\n", noUser},
		{"unknown mechanism", "AUTH=CRAM-MD5", "AUTHENTICATE CRAM-MD5", recordedLogin{"", "", event.BadMechanism}},
		{"cancelled", "AUTH=LOGIN", "AUTHENTICATE LOGIN\r\n" + encodeBase64("carol") + "\r\n*", recordedLogin{"", "", event.BadExchange}},
		{"not base64", "AUTH=LOGIN", "AUTHENTICATE LOGIN\r\n" + encodeBase64("carol") + "\r\n!", recordedLogin{"", "", event.BadExchange}},
		{"cancelled", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("n,,n=carol,r=abc") + "\r\n*", recordedLogin{carol, "", event.BadExchange}},
		{"as another", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("n,a=frank,n=carol,r=abc"), recordedLogin{carol, "", event.BadCredentials}},
		{"wrong binding", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("p=tls-exporter,,n=carol,r=abc"), recordedLogin{carol, "", event.BadCredentials}},
		{"no form", "AUTH=SCRAM-SHA-256", "AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("carol"), noUser},
	} {
		b.expectRecordedLogin(b.dialAs("192.0.2.7", nil), lineClient("", x.text), x.mechanism+", "+x.what, x.mechanism, x.want)
	}
	for name, want := range map[string]recordedLogin{"carol": {carol, "", event.BadCredentials}, invalidName: {"", invalidName, event.BadName}, "a!b": {"", "a!b", event.BadName}} {
		b.expectRecordedLogin(b.dialAs("192.0.2.7", nil), scramClient("", name, "wrong"), "SCRAM of "+name, "AUTH=SCRAM-SHA-256", want)
	}
	for _, x := range []struct {
		what, response string
		names          []string
		want           recordedLogin
	}{
		{"as another", encodeBase64("frank"), []string{carol}, recordedLogin{carol, "", event.BadCredentials}},
		{"bad name", "=", []string{"a!b@example.org"}, recordedLogin{"", "a!b@example.org", event.BadName}},
		{"two names", "=", []string{carol, "frank@example.org"}, noUser},
	} {
		cert := ca.issue(x.names, nil)
		b.expectRecordedLogin(b.dialAs("192.0.2.7", &cert), lineClient("", "AUTHENTICATE EXTERNAL "+x.response), "EXTERNAL, "+x.what, "AUTH=EXTERNAL", x.want)
	}
}
