package tests

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
)

// shapes are the ways in which a secret could show.
func shapes(secret string) []string {
	all := []string{secret, hex.EncodeToString([]byte(secret)), url.QueryEscape(secret), url.PathEscape(secret)}
	for before := range 3 { // the bytes before it shift base64
		coded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", before) + secret))
		all = append(all, coded[4:len(coded)-3])
	}
	return all
}

// wantsNone looks for secrets in everything that a gateway has shown: log, audit
// and metrics.
func (b *binary) wantsNone(t *testing.T, secrets map[string]string) {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(b.dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	shown := b.process.Output() + string(record) + b.scrape(t)
	for what, secret := range secrets {
		for _, shape := range shapes(secret) {
			if i := strings.Index(shown, shape); i >= 0 {
				t.Errorf("%s shows as %s in …%s…", what, shape, shown[max(0, i-300):min(len(shown), i+100)])
			}
		}
	}
}

func TestNoSecretOfAnAuthServerShows(t *testing.T) {
	t.Parallel()
	const header, right, given, wrong = "CANARY1/of the header+", "CANARY2/of the client+", "CANARY3/of-the-server+", "CANARY4/a guess+"
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Auth-Key") != header {
			w.WriteHeader(http.StatusForbidden)
		}
		w.Header().Set("Auth-Pass", given)
		w.Header().Set("Auth-Status", "OK")
		switch password, _ := url.PathUnescape(r.Header.Get("Auth-Pass")); password {
		case wrong:
			w.Header().Set("Auth-Status", "denied "+password) // as careless ones have it
		case "confused":
			w.Header().Set("Auth-Pass", given+"\x7f") // is no password
		}
	}))
	t.Cleanup(page.Close)
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: given})
	b := startBinary(t, backend.CA, east(backend.CA, backend.TLS), "log: {level: debug}", fmt.Sprintf(
		"auth: {methods: [http], http: {urls: [%q], header_files: {X-Auth-Key: %s}}}\nrouting: {source: static, static: {default: east}}",
		page.URL, secretFile(t, header)))
	for password, want := range map[string]string{right: "OK [CAPABILITY", wrong: "NO [AUTHENTICATIONFAILED]", "confused": "NO [UNAVAILABLE]"} {
		c := enter(t, b.endpoint("implicit"), "")
		if got, err := c.Do(`LOGIN alice@example.org "` + password + `"`); err != nil || !strings.Contains(shown(got), " "+want) {
			t.Errorf("%.7s: %v, %v", password, got, err)
		}
	}
	b.wantsNone(t, map[string]string{"the header": header, "a password": right, "Auth-Pass": given, "a guess": wrong})
}

func TestNoSecretOfAnExchangeShows(t *testing.T) {
	t.Parallel()
	const salts, right = "CANARY5/of the salts+", "CANARY6/of the proof+"
	verifier := forProofs(t, right)
	people := filepath.Join(t.TempDir(), "people")
	if err := os.WriteFile(people, []byte(tokenUser+":"+verifier+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := openid.Start(t, tokenUser)
	b, _ := proofGateway(t, fmt.Sprintf("methods: [file, oauth], file: {path: %s}, mechanisms: [SCRAM-SHA-256, OAUTHBEARER, XOAUTH2, PLAIN], scram_secret_file: %s, "+
		"oauth: {introspection_url: %q, client_id: %s, client_secret_file: %s, scope: email}", people, secretFile(t, salts),
		p.Introspection(), openid.Opaque, secretFile(t, openid.Secret)), "log: {level: debug}")
	token := p.Login(t, openid.Opaque, tokenUser).Access
	secrets := map[string]string{"the salts' secret": salts, "the password": right, "the client's secret": openid.Secret, "the token": token, "a changed token": token + "CANARY7"}
	for _, part := range strings.FieldsFunc(strings.TrimSpace(verifier), func(r rune) bool { return r == ',' || r == '}' })[2:] {
		secrets["a key of the verifier, "+part] = part
	}
	for _, mechanism := range []string{"OAUTHBEARER", "XOAUTH2"} {
		entersWith(t, b, bringing(mechanism, tokenUser, token))
		refusedWith(t, b, bringing(mechanism, tokenUser, token+"CANARY7"), "AQ==")
		for _, broken := range []string{"a " + bringing(mechanism, tokenUser, token) + "!\r\n", "a " + bringing(mechanism, tokenUser+"\x00", token) + "\r\n", "a AUTHENTICATE " + token + "\r\n", token + " NOOP\r\n"} {
			c := enter(t, b.endpoint("implicit"), "")
			if _, err := c.Write([]byte(broken + "z LOGOUT\r\n")); err != nil {
				t.Fatal(err)
			}
			_ = untilEnd(c)
		}
	}
	e := b.endpoint("implicit")
	mbsync := testbed.Program(t, "mbsync", "isync")
	for password, good := range map[string]bool{right: true, right + "x": false} {
		if out, err := syncing(t, mbsync, e, password); (err == nil) != good {
			t.Errorf("%s: %v: %s", password, err, out)
		}
	}
	b.wantsNone(t, secrets)
}
