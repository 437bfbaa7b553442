package proxy

import (
	"encoding/base64"
	"fmt"
	"imapgate/internal/testkit"
	"os"
	"strings"
	"testing"
)

// Its parts are long enough to search for.
const misplacedPassword = "S3cr3tpa-ssW0rd"

// passwordTraces returns the strings that must appear nowhere after the password was sent
// in the wrong place. They are the password, its halves, and their base64 at any offset, in
// lower case.
func passwordTraces(password string) []string {
	half := len(password) / 2
	found := []string{password, password[:half], password[half:]}
	for shift := range 3 { // of the three bytes that are four characters
		inner := password[(3-shift)%3:]
		inner = inner[:len(inner)/3*3]
		found = append(found, base64.StdEncoding.EncodeToString([]byte(inner)))
	}
	for i := range found {
		found[i] = strings.ToLower(found[i])
	}
	return found
}

// misplacedLogins returns logins with the password in the wrong place. Those in which it
// looks like a valid user name are not included.
func misplacedLogins(pw string) map[string]string {
	raw := func(text string) string { return base64.RawStdEncoding.EncodeToString([]byte(text)) }
	plain := func(text string) string { return "AUTHENTICATE PLAIN " + encodeBase64(text) }
	step := func(name, password string) string {
		return "AUTHENTICATE LOGIN\r\n" + encodeBase64(name) + "\r\n" + encodeBase64(password)
	}
	xoauth := func(text string) string { return "AUTHENTICATE XOAUTH2 " + encodeBase64(text) + "\r\n" }
	bearer := func(text string) string { return "AUTHENTICATE OAUTHBEARER " + encodeBase64(text) + "\r\n" }
	quoted := func(name, password string) string { return fmt.Sprintf("LOGIN %q %q", name, password) }
	octets := func(name, password string) string {
		return fmt.Sprintf("LOGIN {%d+}\r\n%s %s", len(name), name, password)
	}
	jwt := "eyJhbGciOiJIUzI1NiJ9." + raw(pw) + ".c2ln"
	odd := pw + "$!" // no account can have it
	return map[string]string{
		"PLAIN message as the name of AUTH=LOGIN":              step("\x00bob\x00"+pw, pw),
		"the same with another password":                       step("\x00bob\x00"+pw, "x"),
		"the same in base64 twice":                             step(encodeBase64("\x00bob\x00"+pw), "x"),
		"the same without padding":                             step(raw("\x00bob\x00"+pw), "x"),
		"password as the name of AUTH=LOGIN, none after it":    step(pw, ""),
		"password as the name of AUTH=LOGIN, cancelled":        "AUTHENTICATE LOGIN\r\n" + encodeBase64(pw) + "\r\n*",
		"password as the initial response, cancelled":          "AUTHENTICATE LOGIN " + encodeBase64(pw) + "\r\n*",
		"password as the name of AUTH=LOGIN, then no base64":   "AUTHENTICATE LOGIN\r\n" + encodeBase64(pw) + "\r\n" + pw,
		"password in place of base64":                          "AUTHENTICATE LOGIN\r\n" + pw,
		"odd password as the name of AUTH=LOGIN, none after":   step(odd, ""),
		"odd password as the name of AUTH=LOGIN, cancelled":    "AUTHENTICATE LOGIN\r\n" + encodeBase64(odd) + "\r\n*",
		"odd password as name and password":                    step(odd, odd),
		"name and password with a space":                       step("bob "+pw, pw),
		"name and password with a line end":                    step("bob\r\n"+pw, pw),
		"name and password with a colon, another password":     step("bob:"+pw, "x"),
		"PLAIN: no password":                                   plain("\x00" + pw + "\x00"),
		"PLAIN: no password, odd":                              plain("\x00" + odd + "\x00"),
		"PLAIN: odd password twice":                            plain(odd + "\x00" + odd + "\x00bob"),
		"PLAIN: odd password as another":                       plain(odd + "\x00bob\x00x"),
		"PLAIN: password as another":                           plain(pw + "\x00bob\x00x"),
		"PLAIN: name, password, nothing":                       plain("bob\x00" + pw + "\x00"),
		"PLAIN: name, password, name":                          plain("bob\x00" + pw + "\x00bob"),
		"PLAIN: spaces for NULs":                               plain(" bob " + pw),
		"PLAIN: in quotes":                                     "AUTHENTICATE PLAIN \"" + encodeBase64("\x00bob\x00"+pw) + "\"",
		"PLAIN: not in base64":                                 "AUTHENTICATE PLAIN " + pw,
		"PLAIN: name and password as words":                    "AUTHENTICATE PLAIN bob " + pw,
		"PLAIN: message in the name":                           plain("\x00" + encodeBase64("\x00bob\x00"+pw) + "\x00x"),
		"PLAIN: name with the password":                        plain("\x00bob|" + pw + "\x00" + pw),
		"XOAUTH2: space for ^A":                                xoauth("user=bob auth=Bearer " + pw + "\x01\x01"),
		"XOAUTH2: space for ^A, no Bearer":                     xoauth("user=bob " + pw + "\x01\x01"),
		"XOAUTH2: space for ^A, lower case":                    xoauth("user=bob bearer " + pw + "\x01\x01"),
		"XOAUTH2: password as the user, no token":              xoauth("user=" + pw + "\x01auth=Bearer \x01\x01"),
		"XOAUTH2: password as the user, no auth":               xoauth("user=" + pw + "\x01\x01"),
		"XOAUTH2: in the user and, with an odd one, the token": xoauth("user=bob " + odd + "\x01auth=Bearer " + odd + "\x01\x01"),
		"XOAUTH2: in the user and without Bearer":              xoauth("user=bob " + pw + "\x01auth=" + pw + "\x01\x01"),
		"XOAUTH2: a PLAIN message":                             xoauth("\x00bob\x00" + pw),
		"OAUTHBEARER: comma for ^A":                            bearer("n,a=bob,auth=Bearer " + pw + ",\x01host=x\x01\x01"),
		"OAUTHBEARER: comma for ^A, no Bearer":                 bearer("n,a=bob," + pw + ",\x01auth=Bearer x\x01\x01"),
		"OAUTHBEARER: password as the name, no token":          bearer("n,a=" + pw + ",\x01host=x\x01\x01"),
		"OAUTHBEARER: password as the name, no form":           bearer("n,a=" + pw + ",\x01x"),
		"OAUTHBEARER: in the name and the token":               bearer("n,a=bob=" + pw + ",\x01auth=Bearer " + pw + "\x01\x01"),
		"LOGIN: name:password":                                 quoted("bob:"+pw, pw),
		"LOGIN: name:password, another password":               quoted("bob:"+pw, "x"),
		"LOGIN: URL":                                           quoted("imap://bob:"+pw+"@mail.example.org", "x"),
		"LOGIN: no password":                                   quoted(pw, ""),
		"LOGIN: odd, no password":                              quoted(odd, ""),
		"LOGIN: in capitals":                                   quoted("bob|"+strings.ToUpper(pw), pw),
		"LOGIN: a piece of the password":                       quoted(odd, odd+"more"),
		"LOGIN: PLAIN message":                                 "LOGIN " + encodeBase64("\x00bob\x00"+pw) + " x",
		"LOGIN: PLAIN message without padding":                 "LOGIN " + raw("\x00bob\x00"+pw) + " x",
		"LOGIN: PLAIN message with a name before it":           "LOGIN " + raw("bob\x00bob\x00"+pw) + " x",
		"LOGIN: XOAUTH2 message":                               "LOGIN " + encodeBase64("user=bob\x01auth=Bearer "+pw+"\x01\x01") + " x",
		"LOGIN: Basic":                                         "LOGIN " + encodeBase64("bob:"+pw+"!") + "= x",
		"LOGIN: JWT":                                           "LOGIN " + jwt + " x",
		"LOGIN: NUL":                                           octets("bob\x00"+pw, "x"),
		"LOGIN: ^A":                                            octets("bob\x01"+pw, "x"),
		"LOGIN: one word":                                      "LOGIN " + pw,
		"LOGIN: three words":                                   "LOGIN bob x " + pw,
		"SCRAM: name:password":                                 "AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("n,,n=bob:"+pw+",r=abc") + "\r\n*",
		"SCRAM: PLAIN message":                                 "AUTHENTICATE SCRAM-SHA-256 " + encodeBase64("\x00bob\x00"+pw),
		"AUTHENTICATE: as the mechanism":                       "AUTHENTICATE " + pw,
		"AUTHENTICATE: short mechanism":                        "AUTHENTICATE " + strings.ReplaceAll(pw, "-", ""),
		"AUTHENTICATE: with X-":                                "AUTHENTICATE X-" + pw,
		"AUTHENTICATE: name and password":                      "AUTHENTICATE bob " + pw,
		"AUTHENTICATE: EXTERNAL of a user":                     "AUTHENTICATE EXTERNAL " + encodeBase64(pw),
		"as the command":                                       pw + " bob",
		"as an argument of another command":                    "SELECT " + pw,
	}
}

// The ordinary log is at debug level here.
func TestMisplacedPasswordLeavesNoTrace(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, newTestCA(t)), withoutDenialDelay)
	for what, text := range misplacedLogins(misplacedPassword) {
		before := len(b.logs.String())
		c := b.dialAs("192.0.2.7", nil)
		answer, err := lineClient("", text).login(c)
		if err != nil || strings.HasPrefix(answer, "OK ") {
			t.Errorf("%s: %q, %v", what, answer, err)
		}
		c.close()
		b.lastRecord("connection_refused", c)
		b.expectNoTrace(what, b.logs.String()[before:])
	}
	b.stopServer()
	b.expectNoTrace("the whole", b.logs.String())
}

// expectNoTrace searches for the misplaced password in the audit log and in lines of the
// ordinary log.
func (b *harness) expectNoTrace(what, logged string) {
	b.t.Helper()
	audited, err := os.ReadFile(b.path("audit"))
	testkit.NoError(b.t, err)
	for _, trace := range passwordTraces(misplacedPassword) {
		for text := range strings.Lines(string(audited) + logged) {
			if strings.Contains(strings.ToLower(text), trace) {
				b.t.Fatalf("%s: %q is in %s", what, trace, text)
			}
		}
	}
}
