package tests

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/internal/testkit"
)

const tokenUser = "alice@example.org"

// tokenCommand returns the command that authenticates with a token.
func tokenCommand(mechanism, user, token string) string {
	message := "n,a=" + user + ",\x01host=mail.example.org\x01port=993\x01auth=Bearer " + token + "\x01\x01"
	if mechanism == "XOAUTH2" {
		message = "user=" + user + "\x01auth=Bearer " + token + "\x01\x01"
	}
	return "AUTHENTICATE " + mechanism + " " + base64.StdEncoding.EncodeToString([]byte(message))
}

// startTokenGateway starts a gateway and a Dovecot that introspects tokens. restart restarts
// Dovecot. auth and login are as in the configuration file.
func startTokenGateway(t *testing.T, p *openid.Provider, auth, login string) (b *gatewayProcess, restart func()) {
	t.Helper()
	ca := testbed.NewCA(t)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{CA: ca, Tokens: p.DovecotTokenCheck(t, openid.JWTClient, "oauthbearer")})
	proxy := faultproxy.Start(t, d.TLS)
	b = startProcess(t, ca, fmt.Sprintf(`backends:
  east: {address: %q, server_name: %s, ca: %s, %s}
auth: {%s}
routing: {source: static, static: {default: east}}`, proxy.Address(), testbed.DovecotName, ca.File, login, auth))
	return b, func() {
		proxy.SetAcceptMode(faultproxy.Refuse) // else a connection of the gateway could use a port of Dovecot
		d.Restart()
		proxy.SetAcceptMode(faultproxy.Accept)
	}
}

// oauthConf returns the content of the block auth of a gateway that verifies tokens itself.
func oauthConf(p *openid.Provider) string {
	return fmt.Sprintf("methods: [oauth], oauth: {issuer: %q, audience: [%s], authorized_party: [%[2]s]}", p.Issuer, openid.JWTClient)
}

// loginWithToken logs in with a token.
func loginWithToken(t *testing.T, b *gatewayProcess, command string) *RawClient {
	t.Helper()
	c := mustDial(t, b.endpoint("implicit"), "")
	got, err := c.Do(command)
	if err != nil || !strings.Contains(formatResponses(got), " OK [CAPABILITY ") {
		t.Fatalf("log in with a token: %v, %v", got[:max(0, len(got)-1)], err)
	}
	requireOK(t, c, "SELECT INBOX")
	return c
}

func requireOK(t *testing.T, c *RawClient, command string) {
	t.Helper()
	got, err := c.Do(command)
	if err != nil || !strings.Contains(got[len(got)-1].Text, " OK") {
		t.Fatalf("%s: %v, %v", command, got, err)
	}
}

// checkTokenRefused checks that a token is refused. It returns the reasons and the tagged
// response.
func checkTokenRefused(t *testing.T, b *gatewayProcess, command, dismissal string) (reasons map[string]string, end string) {
	t.Helper()
	c := mustDial(t, b.endpoint("implicit"), "")
	tag, err := c.Send(command)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := c.Read()
	if err != nil || !strings.HasPrefix(challenge.Text, "+ ") {
		t.Fatalf("%v, %v", challenge, err)
	}
	text, err := base64.StdEncoding.DecodeString(challenge.Text[len("+ "):])
	if err != nil || json.Unmarshal(text, &reasons) != nil {
		t.Fatalf("%s: %q, %v", challenge.Text, text, err)
	}
	if _, err := c.Write([]byte(dismissal + "\r\n")); err != nil {
		t.Fatal(err)
	}
	got, err := c.ReadUntil(tag)
	if err != nil {
		t.Fatal(err)
	}
	return reasons, got[len(got)-1].Text
}

func TestTokenOpensOnlyItsUsersMailbox(t *testing.T) {
	t.Parallel()
	const mallory = "mallory@example.org"
	p := openid.Start(t, tokenUser, mallory)
	b, _ := startTokenGateway(t, p, oauthConf(p), "login: oauth")
	good, hers := p.Login(t, openid.JWTClient, tokenUser).Access, p.Login(t, openid.JWTClient, mallory).Access
	for _, mechanism := range []string{"OAUTHBEARER", "XOAUTH2"} {
		loginWithToken(t, b, tokenCommand(mechanism, tokenUser, good))
		for what, command := range map[string]string{
			"another's token":  tokenCommand(mechanism, tokenUser, hers),
			"a changed token":  tokenCommand(mechanism, tokenUser, good[:len(good)-8]+"AAAAAAAA"),
			"another client's": tokenCommand(mechanism, tokenUser, p.Login(t, openid.OpaqueClient, tokenUser).ID),
			"no token":         tokenCommand(mechanism, tokenUser, ""),
		} {
			why, end := checkTokenRefused(t, b, command, "AQ==")
			if !strings.Contains(end, " NO [AUTHENTICATIONFAILED] ") {
				t.Errorf("%s, %s: %q, %s", mechanism, what, why, end)
			}
			if at := p.Issuer + "/.well-known/openid-configuration"; mechanism == "OAUTHBEARER" && (why["status"] != "invalid_token" || why["openid-configuration"] != at) ||
				mechanism == "XOAUTH2" && why["status"] != "401" {
				t.Errorf("%s, %s: %q", mechanism, what, why)
			}
		}
	}
	loginWithToken(t, b, anonymousToken(good))
	p.SetFault(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	c := mustDial(t, b.endpoint("implicit"), "")
	if got, err := c.Do(tokenCommand("OAUTHBEARER", tokenUser, good)); err != nil || !strings.Contains(formatResponses(got), " NO [UNAVAILABLE] ") {
		t.Errorf("while Dovecot cannot reach the provider: %v, %v", got, err)
	}
}

// anonymousToken returns a message without a user, who is then the token's (RFC 7628 §3.1).
func anonymousToken(token string) string {
	return "AUTHENTICATE OAUTHBEARER " + base64.StdEncoding.EncodeToString([]byte("n,,\x01auth=Bearer "+token+"\x01\x01"))
}

func TestTokenIsPassedThrough(t *testing.T) {
	t.Parallel()
	p := openid.Start(t, tokenUser)
	b, _ := startTokenGateway(t, p, "methods: [passthrough], mechanisms: [OAUTHBEARER, XOAUTH2, PLAIN]", "mode: reuse")
	token := p.Login(t, openid.JWTClient, tokenUser).Access
	loginWithToken(t, b, tokenCommand("XOAUTH2", tokenUser, token)) // Dovecot offers only OAUTHBEARER
	loginWithToken(t, b, "LOGIN "+tokenUser+" pw")
	if why, end := checkTokenRefused(t, b, tokenCommand("OAUTHBEARER", tokenUser, token+"x"), "AQ=="); why["status"] != "invalid_token" || !strings.Contains(end, " NO [AUTHENTICATIONFAILED] ") {
		t.Errorf("%q, %s", why, end)
	}
}

func TestSessionReattachesWithAValidToken(t *testing.T) {
	t.Parallel()
	p := openid.Start(t, tokenUser)
	b, restart := startTokenGateway(t, p, oauthConf(p), "login: oauth, mode: resume, mux: {command_hold_timeout: 30s}")
	token := p.Login(t, openid.JWTClient, tokenUser).Access
	c := loginWithToken(t, b, tokenCommand("OAUTHBEARER", tokenUser, token))
	restart()
	requireOK(t, c, "NOOP")
	requireOK(t, c, "STATUS INBOX (UIDNEXT)")
	p.Revoke(t, openid.JWTClient, token)
	restart()
	got, err := c.Do("NOOP")
	if err == nil && !strings.Contains(formatResponses(got), "BYE") {
		err = readToEnd(c)
	}
	if err != nil && !isConnEnd(err) {
		t.Errorf("%v, %v", got, err)
	}
	testkit.Eventually(t, "the end to be in the audit log", func() bool {
		record, err := os.ReadFile(filepath.Join(b.dir, "audit"))
		return err == nil && bytes.Contains(record, []byte(`"login_revoked"`))
	})
	if record, err := os.ReadFile(filepath.Join(b.dir, "audit")); err != nil || bytes.Contains(record, []byte(token[:30])) || strings.Contains(b.process.Output(), token[:30]) {
		t.Errorf("the token is in a log, or: %v", err)
	}
}

func TestCurlLogsInWithAToken(t *testing.T) {
	t.Parallel()
	curl := testbed.FindProgram(t, "curl", "curl")
	p := openid.Start(t, tokenUser)
	b, _ := startTokenGateway(t, p, oauthConf(p), "login: oauth")
	token := p.Login(t, openid.JWTClient, tokenUser).Access
	e := b.endpoint("implicit")
	_, port := splitAddress(t, e.address)
	for _, mechanism := range []string{"OAUTHBEARER", "XOAUTH2"} {
		for _, ir := range []string{"--sasl-ir", "--no-sasl-ir"} {
			run := func(token string) ([]byte, error) {
				return exec.Command(curl, "--silent", "--show-error", "--max-time", "20", ir, "--cacert", e.caFile, "--user", tokenUser+":",
					"--oauth2-bearer", token, "--login-options", "AUTH="+mechanism, "imaps://localhost:"+port, "-X", "EXAMINE INBOX").CombinedOutput()
			}
			if out, err := run(token); err != nil || !strings.Contains(string(out), "UIDVALIDITY") {
				t.Errorf("%s %s: %v: %s", mechanism, ir, err, out)
			}
			if out, err := run(token + "x"); err == nil || !strings.Contains(string(out), "denied") && !strings.Contains(string(out), "Authentication") && !strings.Contains(string(out), "Login") {
				t.Errorf("%s %s, a bad token: %v: %s", mechanism, ir, err, out)
			}
		}
	}
}
