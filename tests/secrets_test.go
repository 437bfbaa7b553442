package tests

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/internal/testkit"
)

// checkNoSecrets searches for secrets in all output of a gateway: log, audit log and
// metrics.
func (b *gatewayProcess) checkNoSecrets(t *testing.T, secrets map[string]string) {
	t.Helper()
	record, err := os.ReadFile(filepath.Join(b.dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	shown := b.process.Output() + string(record) + b.scrapeMetrics(t)
	for _, found := range testkit.FindSecrets(shown, secrets) {
		t.Error(found)
	}
}

func TestAuthServerSecretsAreNotRecorded(t *testing.T) {
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
			w.Header().Set("Auth-Status", "denied "+password) // as a careless auth server would
		case "confused":
			w.Header().Set("Auth-Pass", given+"\x7f") // an invalid password
		}
	}))
	t.Cleanup(page.Close)
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: given})
	b := startProcess(t, backend.CA, eastBackendConf(backend.CA, backend.TLS), "log: {level: debug}", fmt.Sprintf(
		"auth: {methods: [http], http: {urls: [%q], header_files: {X-Auth-Key: %s}}}\nrouting: {source: static, static: {default: east}}",
		page.URL, writeSecretFile(t, header)))
	for password, want := range map[string]string{right: "OK [CAPABILITY", wrong: "NO [AUTHENTICATIONFAILED]", "confused": "NO [UNAVAILABLE]"} {
		c := mustDial(t, b.endpoint("implicit"), "")
		if got, err := c.Do(`LOGIN alice@example.org "` + password + `"`); err != nil || !strings.Contains(formatResponses(got), " "+want) {
			t.Errorf("%.7s: %v, %v", password, got, err)
		}
	}
	b.checkNoSecrets(t, map[string]string{"the header": header, "a password": right, "Auth-Pass": given, "a guess": wrong})
}

func TestExchangeSecretsAreNotRecorded(t *testing.T) {
	t.Parallel()
	const salts, right = "CANARY5/of the salts+", "CANARY6/of the proof+"
	verifier := hashForSCRAM(t, right)
	passwdFile := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(passwdFile, []byte(tokenUser+":"+verifier+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := openid.Start(t, tokenUser)
	b, _ := startProofGateway(t, fmt.Sprintf("methods: [file, oauth], file: {path: %s}, mechanisms: [SCRAM-SHA-256, OAUTHBEARER, XOAUTH2, PLAIN], scram_secret_file: %s, "+
		"oauth: {introspection_url: %q, client_id: %s, client_secret_file: %s, scope: email}", passwdFile, writeSecretFile(t, salts),
		p.IntrospectionURL(), openid.OpaqueClient, writeSecretFile(t, openid.ClientSecret)), "log: {level: debug}")
	token := p.Login(t, openid.OpaqueClient, tokenUser).Access
	secrets := map[string]string{"the salts' secret": salts, "the password": right, "the client's secret": openid.ClientSecret, "the token": token, "a changed token": token + "CANARY7"}
	for _, part := range strings.FieldsFunc(strings.TrimSpace(verifier), func(r rune) bool { return r == ',' || r == '}' })[2:] {
		secrets["a key of the verifier, "+part] = part
	}
	for _, mechanism := range []string{"OAUTHBEARER", "XOAUTH2"} {
		loginWithToken(t, b, tokenCommand(mechanism, tokenUser, token))
		checkTokenRefused(t, b, tokenCommand(mechanism, tokenUser, token+"CANARY7"), "AQ==")
		for _, broken := range []string{"a " + tokenCommand(mechanism, tokenUser, token) + "!\r\n", "a " + tokenCommand(mechanism, tokenUser+"\x00", token) + "\r\n", "a AUTHENTICATE " + token + "\r\n", token + " NOOP\r\n"} {
			c := mustDial(t, b.endpoint("implicit"), "")
			if _, err := c.Write([]byte(broken + "z LOGOUT\r\n")); err != nil {
				t.Fatal(err)
			}
			_ = readToEnd(c)
		}
	}
	e := b.endpoint("implicit")
	mbsync := testbed.FindProgram(t, "mbsync", "isync")
	for password, good := range map[string]bool{right: true, right + "x": false} {
		if out, err := runMbsyncSCRAM(t, mbsync, e, password); (err == nil) != good {
			t.Errorf("%s: %v: %s", password, err, out)
		}
	}
	b.checkNoSecrets(t, secrets)
}

// echoBackend is a backend that repeats the last secret in every kind of response, in every
// encoding.
type echoBackend struct{ lastSecret atomic.Value }

// serve serves one connection until it ends.
func (p *echoBackend) serve(c *testkit.Conn) {
	words, _ := p.lastSecret.Load().([]string)
	if len(words) == 0 {
		words = []string{"Hello."}
	}
	if len(words) > 1 && words[1] == "greeting" {
		_ = c.Send("* BYE [" + words[0] + "] " + words[0])
		p.lastSecret.Store([]string{"Hello."})
		return
	}
	_ = c.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR ID AUTH=PLAIN] " + words[0])
	for {
		line, err := c.ReadLine()
		if err != nil {
			return
		}
		f := strings.Fields(line)
		answer := f[0] + " OK Done."
		if len(f) == 4 && f[1] == "AUTHENTICATE" {
			message, _ := base64.StdEncoding.DecodeString(f[3])
			parts := strings.Split(string(message), "\x00") // "", user, password
			answer = f[0] + " " + p.answer(strings.TrimSuffix(parts[1], "@example.org"), parts[2])
		} else if words, _ := p.lastSecret.Load().([]string); len(f) > 1 && f[1] == "SELECT" && len(words) == 1 {
			answer = "* BYE [" + words[0] + "] " + words[0]
		} else if len(f) > 1 && f[1] == "EXAMINE" {
			answer = "* OK [UIDVALIDITY 100] UIDs.\r\n" + answer
		} else if len(words) == 1 && len(f) == 4 && f[1] == "COPY" {
			answer = "* BYE " + words[0]
		}
		if c.Send(answer) != nil || strings.HasPrefix(answer, "* BYE") {
			return
		}
	}
}

// answer returns a response with the password. The user name contains the numbers of the
// response and of the encoding.
func (p *echoBackend) answer(user, password string) string {
	var answerIndex, encodingIndex int
	_, _ = fmt.Sscanf(user, "parrot%d.%d", &answerIndex, &encodingIndex)
	encoded := strings.ReplaceAll(testkit.Encodings(password)[encodingIndex], " ", "")
	p.lastSecret.Store([]string{encoded})
	if answerIndex == 0 {
		p.lastSecret.Store([]string{encoded, "greeting"})
	}
	return strings.ReplaceAll(echoAnswers[answerIndex], "%", encoded)
}

var echoAnswers = []string{
	"NO %", "NO [%] %", "NO [LIMIT] %", "NO [ALERT] %", "NO [UNAVAILABLE] %", "NO [REFERRAL %] %", "BAD %", "NO [AUTHENTICATIONFAILED] %",
	"OK [CAPABILITY IMAP4rev1 X-%] %", "OK [ALERT] %", "%", "BYE %",
}

func TestPasswordsEchoedByABackendAreNotRecorded(t *testing.T) {
	t.Parallel()
	const right = "CANARY8/of-the-parrot+"
	for _, mode := range []string{"splice", "reuse", "resume"} {
		backend := testkit.StartIMAP(t, new(echoBackend).serve)
		ca := testbed.NewCA(t)
		b := startProcess(t, ca, fmt.Sprintf("backends:\n  east: {address: %q, tls: none, mode: %s}", backend.Addr(), mode), "log: {level: debug}",
			"routing: {source: static, static: {default: east}}\nlimits: {exempt_networks: [127.0.0.0/8]}\nauth: {default_domain: example.org}")
		var clients []*RawClient
		for form := range echoAnswers {
			for turn := range 4 { // each encoding in some response, and each response with some encodings
				c := mustDial(t, b.endpoint("implicit"), "")
				last := "b SELECT INBOX\r\n" // answered BYE, with or without a selected mailbox
				if turn%2 > 0 {
					last = "b EXAMINE INBOX\r\nc COPY 1 box\r\n"
				}
				_, _ = fmt.Fprintf(c, "a LOGIN parrot%d.%d %s\r\n%sd LOGOUT\r\n", form, (4*form+turn)%len(testkit.Encodings(right)), right, last)
				clients = append(clients, c)
			}
		}
		for _, c := range clients {
			_ = readToEnd(c)
		}
		b.checkNoSecrets(t, map[string]string{"the password": right})
		if log := b.process.Output(); !strings.Contains(log, "[UNAVAILABLE]") || !strings.Contains(log, "[unknown code]") {
			t.Errorf("%s: the codes are not in the log:\n%.3000s", mode, log)
		}
	}
}
