package tests

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/auth/oauth"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/internal/testkit"
)

// allModes are the modes, each that of a backend of the same name. All backends are one
// Dovecot.
var allModes = []string{"splice", "reuse", "resume"}

func userForMode(mode string) string { return mode + "@example.org" }

// startMasterDovecot starts a Dovecot with a master user.
func startMasterDovecot(t *testing.T) (*testbed.CA, *testbed.Dovecot) {
	t.Helper()
	ca := testbed.NewCA(t)
	return ca, testbed.StartDovecot(t, testbed.DovecotConfig{CA: ca, Password: "another one", Master: master, MasterPassword: masterPassword})
}

// startAllModes starts a gateway for d that verifies tokens. auth is the content of the
// block auth.
func startAllModes(t *testing.T, ca *testbed.CA, d *testbed.Dovecot, auth string) *gatewayProcess {
	t.Helper()
	backends, users := "backends:\n", []string(nil)
	for _, mode := range allModes {
		backends += fmt.Sprintf("  %s: {mode: %s, address: %q, server_name: %s, ca: %s, login: master, master: {user: %s, password_file: %s}}\n",
			mode, mode, d.TLS, testbed.DovecotName, ca.File, master, writeSecretFile(t, masterPassword))
		users = append(users, fmt.Sprintf("%q: %s", userForMode(mode), mode))
	}
	return startProcess(t, ca, fmt.Sprintf("%sauth: {%s}\nrouting: {source: static, static: {users: {%s}}}",
		backends, auth, strings.Join(users, ", ")))
}

// idleSession is an idle session and its expected end.
type idleSession struct {
	*RawClient
	label      string
	expectsBye bool // false if bytes are spliced
}

// openIdleSessions opens three sessions in each mode: one without a command, one in IDLE and
// one that is pinned.
func openIdleSessions(t *testing.T, b *gatewayProcess, token func(mode string) string) (all []idleSession) {
	t.Helper()
	for _, mode := range allModes {
		for _, state := range []string{"rests", "idles", "is pinned"} {
			c := loginWithToken(t, b, tokenCommand("OAUTHBEARER", userForMode(mode), token(mode)))
			switch state {
			case "idles":
				if _, err := c.Send("IDLE"); err != nil {
					t.Fatal(err)
				}
				if got, err := c.Read(); err != nil || !strings.HasPrefix(got.Text, "+ ") {
					t.Fatalf("%v, %v", got, err)
				}
			case "is pinned": // by an unknown command
				if got, err := c.Do("XNOTHING"); err != nil || !strings.Contains(formatResponses(got), " BAD ") {
					t.Fatalf("%v, %v", got, err)
				}
			}
			all = append(all, idleSession{c, mode + " " + state, mode != "splice" && state != "is pinned"})
		}
	}
	return all
}

// checkAlive checks that the session still works.
func (s idleSession) checkAlive(t *testing.T) {
	t.Helper()
	command := "NOOP"
	if strings.Contains(s.label, "idles") {
		if _, err := s.Write([]byte("DONE\r\n")); err != nil {
			t.Fatalf("%s: %v", s.label, err)
		}
	}
	if got, err := s.Do(command); err != nil || !strings.Contains(formatResponses(got), " OK ") {
		t.Errorf("%s: %v, %v", s.label, got, err)
	}
}

// checkEnded checks that the gateway ends the session because of its token.
func (s idleSession) checkEnded(t *testing.T) {
	t.Helper()
	got, err := s.Read()
	for err == nil && got.Text == "* OK Still here" { // sent by Dovecot after two minutes of IDLE
		got, err = s.Read()
	}
	if s.expectsBye && err == nil && strings.HasPrefix(got.Text, "* BYE [EXPIRED] ") {
		got, err = s.Read()
	} else if s.expectsBye {
		t.Errorf("%s: no BYE but %v, %v", s.label, got, err)
	}
	if err == nil || !isConnEnd(err) {
		t.Errorf("%s: instead of an end %v, %v", s.label, got, err)
	}
}

// countSessionEnds counts the audit records of sessions that ended for a reason.
func (b *gatewayProcess) countSessionEnds(t *testing.T, reason string) (n int) {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(b.dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(record) {
		var r struct{ Event, Reason string }
		if json.Unmarshal(line, &r) == nil && r.Event == "session_ended" && r.Reason == reason {
			n++
		}
	}
	return n
}

// The shortest session_grace equals the leeway for expired tokens. The tokens of this test
// have expired already, and the sessions end with the grace.
func TestSessionsEndWithTheirTokenIfConfigured(t *testing.T) {
	t.Parallel()
	const left = 25 * time.Second
	p := openid.Start(t, userForMode("splice"), userForMode("reuse"), userForMode("resume"))
	ca, d := startMasterDovecot(t)
	auth := fmt.Sprintf("methods: [oauth], oauth: {issuer: %q, audience: [%s]", p.Issuer, openid.JWTClient)
	strict, lenient := startAllModes(t, ca, d, auth+", session_grace: 30s}"), startAllModes(t, ca, d, auth+"}")
	fresh := map[string]string{}
	for _, mode := range allModes {
		fresh[mode] = p.Login(t, openid.JWTClient, userForMode(mode)).Access
	}
	p.SetLifetime(left - oauth.Leeway)
	earliestEnd := time.Now().Add(left - time.Second) // exp has whole seconds
	old := map[string]string{}
	for _, mode := range allModes {
		old[mode] = p.Login(t, openid.JWTClient, userForMode(mode)).Access
	}
	ofOld, ofFresh := func(mode string) string { return old[mode] }, func(mode string) string { return fresh[mode] }
	ending := openIdleSessions(t, strict, ofOld)
	staying := openIdleSessions(t, lenient, ofOld) // first, while the tokens are still accepted
	staying = append(staying, openIdleSessions(t, strict, ofFresh)...)
	for _, s := range ending {
		s.checkEnded(t)
	}
	if time.Now().Before(earliestEnd) {
		t.Error("sessions ended before their tokens")
	}
	for _, s := range staying {
		s.checkAlive(t)
	}
	testkit.Eventually(t, "the ends to be in the audit log", func() bool { return strict.countSessionEnds(t, "token_expired") == len(ending) })
	if n := strict.sumMetric(t, `imapgate_mux_sessions_terminated_total`); n != 4 {
		t.Errorf("%v BYEs are counted\n%s", n, strict.scrapeMetrics(t))
	}
	if n := lenient.countSessionEnds(t, "token_expired"); n != 0 {
		t.Errorf("%d sessions have ended without session_grace", n)
	}
}

func TestTokenWithoutExpiryEndsNoSession(t *testing.T) {
	t.Parallel()
	const left = 8 * time.Second
	var expiries sync.Map // by token; the lifetime starts at the first introspection
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		token := r.FormValue("token")
		mode, timed := strings.CutSuffix(token, "-timed")
		claims := map[string]any{"active": true, "email": userForMode(mode), "scope": "mail"}
		if timed {
			claims["exp"], _ = expiries.LoadOrStore(token, time.Now().Add(left-oauth.Leeway).Unix())
		}
		_ = json.NewEncoder(w).Encode(claims) // fails only if the gateway has disconnected
	}))
	t.Cleanup(provider.Close)
	ca, d := startMasterDovecot(t)
	b := startAllModes(t, ca, d, fmt.Sprintf("methods: [oauth], oauth: {introspection_url: %q, scope: mail, session_grace: 30s}", provider.URL))
	ending := openIdleSessions(t, b, func(mode string) string { return mode + "-timed" })
	staying := openIdleSessions(t, b, func(mode string) string { return mode })
	for _, s := range ending {
		s.checkEnded(t)
	}
	for _, s := range staying {
		s.checkAlive(t)
	}
}

// Mode resume logs in at the backend with the client's token. Once the token has expired, a
// session without an upstream ends at once, with a command outstanding or in IDLE.
func TestSessionDoesNotReattachWithAnExpiredToken(t *testing.T) {
	t.Parallel()
	const lifetime = 10 * time.Second
	p := openid.Start(t, tokenUser)
	ca := testbed.NewCA(t)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{CA: ca, Tokens: p.DovecotTokenCheck(t, openid.JWTClient, "oauthbearer")})
	proxy := faultproxy.Start(t, d.TLS)
	b := startProcess(t, ca, fmt.Sprintf(`backends:
  east: {address: %q, server_name: %s, ca: %s, login: oauth, mode: resume, mux: {command_hold_timeout: 2m, idle_reattach_timeout: 5m}}
auth: {%s}
routing: {source: static, static: {default: east}}`, proxy.Address(), testbed.DovecotName, ca.File, oauthConf(p)))
	p.SetLifetime(lifetime)
	token := p.Login(t, openid.JWTClient, tokenUser).Access
	expired := time.Now().Add(lifetime)
	resting := loginWithToken(t, b, tokenCommand("OAUTHBEARER", tokenUser, token))
	idling := loginWithToken(t, b, tokenCommand("OAUTHBEARER", tokenUser, token))
	if _, err := idling.Send("IDLE"); err != nil {
		t.Fatal(err)
	}
	if got, err := idling.Read(); err != nil || !strings.HasPrefix(got.Text, "+ ") {
		t.Fatalf("%v, %v", got, err)
	}
	testkit.Eventually(t, "the token to expire", func() bool { return time.Now().After(expired) })
	requireOK(t, resting, "NOOP") // its upstream still works
	requestsBefore := p.RequestCount()
	proxy.SetAcceptMode(faultproxy.Refuse)
	proxy.ResetConns()
	idleSession{idling, "in IDLE", true}.checkEnded(t)
	if _, err := resting.Send("NOOP"); err != nil {
		t.Fatal(err)
	}
	idleSession{resting, "with a command", true}.checkEnded(t)
	if n := p.RequestCount() - requestsBefore; n != 0 {
		t.Errorf("the provider got %d requests", n)
	}
	testkit.Eventually(t, "the ends to be in the audit log", func() bool { return b.countSessionEnds(t, "token_expired") == 2 })
}
