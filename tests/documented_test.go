package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/proxy/upstream"
)

// documentedBlocks returns the indented blocks under a heading of docs/operating/dovecot.md.
func documentedBlocks(t *testing.T, heading string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "operating", "dovecot.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n### "+heading+"\n")
	if !found {
		t.Fatalf("docs/operating/dovecot.md has no heading %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n##")
	for _, block := range regexp.MustCompile(`(?m)(?:^ {4}.*\n)+`).FindAllString(section+"\n", -1) {
		blocks = append(blocks, strings.ReplaceAll("\n"+block, "\n    ", "\n"))
	}
	if len(blocks) == 0 {
		t.Fatalf("docs/operating/dovecot.md has no settings under %q", heading)
	}
	return blocks
}

// dovecotSeries returns the part of Dovecot's version that determines its settings.
func dovecotSeries(t *testing.T) string {
	t.Helper()
	return strings.Join(strings.Split(testbed.DovecotVersion(t), ".")[:2], ".")
}

// substituteNames replaces an operator's names in a block with those of the test bed.
func substituteNames(d *testbed.Dovecot, block string) string {
	return strings.NewReplacer(
		"192.0.2.10", "127.0.0.1", "/etc/dovecot/master-users", d.InnerPath(filepath.Join(d.Dir, "masters")),
		"gid=vmail", "gid=nogroup", "gid = vmail", "gid = nogroup",
		"/var/vmail", d.InnerPath(filepath.Join(d.Dir, "mail")), "vmail", "nobody",
	).Replace(block)
}

// writePassdb writes a passdb with all users, as a site would have.
func writePassdb(t *testing.T) string {
	if dovecotSeries(t) == "2.3" {
		return "passdb {\n  driver = static\n  args = password=" + password + "\n}\n"
	}
	return "passdb static {\n  password = " + password + "\n}\n"
}

// checkNoWarnings checks that Dovecot logs no warnings about its settings.
func checkNoWarnings(t *testing.T, d *testbed.Dovecot) {
	t.Helper()
	conf := d.InnerPath(filepath.Join(d.Dir, "dovecot.conf"))
	out, err := testbed.Command(t, "doveconf", "dovecot-core", "-n", "-c", conf).CombinedOutput()
	if err != nil || regexp.MustCompile(`(?i)obsolete|warning:|unknown`).Match(out) {
		t.Errorf("doveconf -n: %v\n%s", err, out)
	}
	if regexp.MustCompile(`(?i) (warning|error|fatal): `).MatchString(d.Log()) {
		t.Errorf("the log: %s", d.Log())
	}
}

// With the documented settings a gateway logs in by the user's password and as a master,
// in both styles. The master sees INBOX, and Dovecot logs the client's address.
func TestDocumentedDovecotSettingsWork(t *testing.T) {
	t.Parallel()
	d := testbed.StartDovecot(t, testbed.DovecotConfig{
		Master: master, MasterPassword: "{PLAIN}" + masterPassword,
		GatewaySettings: func(d *testbed.Dovecot) string {
			return substituteNames(d, documentedBlocks(t, "Dovecot "+dovecotSeries(t))[0]) + writePassdb(t)
		},
	})
	backends := map[string]string{}
	for _, w := range upstreamVariants() {
		if w.tls != event.NoTLS {
			backends[w.String()] = w.backendConf(t, d)
		}
	}
	s := redisStores["single"](t)
	g := startGateway(t, d.CA, backendsConf(backends), s.conf, "auth: {methods: [redis, passthrough]}")
	i := 0
	for name, conf := range backends {
		i++
		c := endToEndCase{g: g, backend: d, listener: event.ImplicitTLS, user: fmt.Sprintf("user%d", i), ip: fmt.Sprintf("127.9.0.%d", i)}
		t.Run(name, func(t *testing.T) {
			if strings.Contains(conf, "login: master") { // the gateway must verify the password
				s.setRoute(t, c.user, name, "password", "{PLAIN}"+password)
			} else {
				s.setRoute(t, c.user, name)
			}
			c.run(t)
		})
	}
	checkNoWarnings(t, d)
}

// With the documented settings Dovecot accepts valid tokens only.
func TestDocumentedDovecotTokenSettingsWork(t *testing.T) {
	t.Parallel()
	p := openid.Start(t, tokenUser)
	check := p.DovecotTokenCheck(t, openid.JWTClient, "")
	provider := strings.NewReplacer("https://CLIENT:SECRET@id.example.org/introspect", check.Introspection)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{GatewaySettings: func(d *testbed.Dovecot) string {
		blocks := documentedBlocks(t, "Tokens at Dovecot "+dovecotSeries(t))
		const separate = "/etc/dovecot/dovecot-oauth2.conf.ext"
		file := filepath.Join(d.Dir, "dovecot-oauth2.conf.ext")
		if strings.Contains(blocks[0], separate) {
			if err := os.WriteFile(file, []byte(provider.Replace(blocks[1])), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		own := strings.Replace(provider.Replace(blocks[0]), separate, d.InnerPath(file), 1)
		return substituteNames(d, documentedBlocks(t, "Dovecot "+dovecotSeries(t))[0]) + writePassdb(t) + own
	}})
	for _, login := range []string{upstream.OAuthLogin, upstream.Passthrough} {
		b := startProcess(t, d.CA, fmt.Sprintf(`backends:
  east: {address: %q, server_name: %s, ca: %s, login: %s}
auth: {methods: [passthrough], mechanisms: [OAUTHBEARER, XOAUTH2, PLAIN, LOGIN]}
routing: {source: static, static: {default: east}}`, d.TLS, testbed.DovecotName, d.CA.File, login))
		token := p.Login(t, openid.JWTClient, tokenUser).Access
		for _, mechanism := range []string{"OAUTHBEARER", "XOAUTH2"} {
			loginWithToken(t, b, tokenCommand(mechanism, tokenUser, token))
			_, end := checkTokenRefused(t, b, tokenCommand(mechanism, tokenUser, token+"x"), "AQ==")
			if !strings.Contains(end, " NO [AUTHENTICATIONFAILED] ") {
				t.Errorf("%s, %s: a bad token: %s", login, mechanism, end)
			}
		}
	}
	checkNoWarnings(t, d)
}

// Without TLS the documented settings accept passwords from the gateway's address only.
func TestDocumentedSettingsRefuseUntrustedClientsWithoutTLS(t *testing.T) {
	t.Parallel()
	for trusted, want := range map[string]string{"127.0.0.2": " OK ", "127.0.0.3": "PRIVACYREQUIRED"} {
		d := testbed.StartDovecot(t, testbed.DovecotConfig{Master: master, MasterPassword: masterPassword, GatewaySettings: func(d *testbed.Dovecot) string {
			return strings.ReplaceAll(substituteNames(d, documentedBlocks(t, "Dovecot "+dovecotSeries(t))[0]), "networks = 127.0.0.1", "networks = "+trusted) + writePassdb(t)
		}})
		client := mustDial(t, endpoint{address: d.Plain}, "127.0.0.2")
		if got, err := client.Do("LOGIN amy " + password); err != nil || !strings.Contains(formatResponses(got), want) {
			t.Errorf("%s is trusted: %v, %v; want %q", trusted, got, err, want)
		}
	}
}
