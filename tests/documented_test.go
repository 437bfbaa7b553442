package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imapgate/auth"
	"imapgate/internal/testbed"
	"imapgate/internal/testbed/openid"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
)

// documented are the indented blocks under a heading of docs/OPERATIONS.md.
func documented(t *testing.T, heading string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "docs", "OPERATIONS.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n### "+heading+"\n")
	if !found {
		t.Fatalf("docs/OPERATIONS.md has no heading %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n##")
	for _, block := range regexp.MustCompile(`(?m)(?:^ {4}.*\n)+`).FindAllString(section+"\n", -1) {
		blocks = append(blocks, strings.ReplaceAll("\n"+block, "\n    ", "\n"))
	}
	if len(blocks) == 0 {
		t.Fatalf("docs/OPERATIONS.md has no settings under %q", heading)
	}
	return blocks
}

// series is the part of the running Dovecot's version that its settings go by.
func series(t *testing.T) string {
	t.Helper()
	return strings.Join(strings.Split(testbed.DovecotVersion(t), ".")[:2], ".")
}

// here is a block with the names of this test bed in the place of an operator's.
func here(d *testbed.Dovecot, block string) string {
	return strings.NewReplacer(
		"192.0.2.10", "127.0.0.1", "/etc/dovecot/master-users", d.Inside(filepath.Join(d.Dir, "masters")),
		"gid=vmail", "gid=nogroup", "gid = vmail", "gid = nogroup",
		"/var/vmail", d.Inside(filepath.Join(d.Dir, "mail")), "vmail", "nobody",
	).Replace(block)
}

// users is a passdb of everybody, as a site would have its own.
func users(t *testing.T) string {
	if series(t) == "2.3" {
		return "passdb {\n  driver = static\n  args = password=" + password + "\n}\n"
	}
	return "passdb static {\n  password = " + password + "\n}\n"
}

// wantNoComplaint wants Dovecot to have nothing to say about its settings.
func wantNoComplaint(t *testing.T, d *testbed.Dovecot) {
	t.Helper()
	conf := d.Inside(filepath.Join(d.Dir, "dovecot.conf"))
	out, err := testbed.Command(t, "doveconf", "dovecot-core", "-n", "-c", conf).CombinedOutput()
	if err != nil || regexp.MustCompile(`(?i)obsolete|warning:|unknown`).Match(out) {
		t.Errorf("doveconf -n: %v\n%s", err, out)
	}
	if regexp.MustCompile(`(?i) (warning|error|fatal): `).MatchString(d.Log()) {
		t.Errorf("the log: %s", d.Log())
	}
}

// With the settings of the handbook a gateway logs in by the user's password and as
// a master, in both styles; the master sees INBOX, and Dovecot sees the client.
func TestTheDocumentedSettingsOfDovecotWork(t *testing.T) {
	t.Parallel()
	d := testbed.StartDovecot(t, testbed.DovecotConfig{
		Master: master, MasterPassword: "{PLAIN}" + masterPassword,
		Site: func(d *testbed.Dovecot) string { return here(d, documented(t, "Dovecot "+series(t))[0]) + users(t) },
	})
	backends := map[string]upstream.Config{}
	for _, w := range ways() {
		if w.tls != upstream.NoTLS {
			backends[w.String()] = w.config(d)
		}
	}
	s := stores["single"](t)
	g := startGateway(t, options{ca: d.CA, backends: backends, redis: &s.config, methods: []string{auth.Redis, auth.Passthrough}})
	i := 0
	for name, way := range backends {
		i++
		c := combination{g: g, backend: d, listener: proxy.ImplicitTLS, user: fmt.Sprintf("user%d", i), ip: fmt.Sprintf("127.9.0.%d", i)}
		t.Run(name, func(t *testing.T) {
			if way.Login == upstream.MasterLogin { // somebody must check the password
				s.route(t, c.user, name, "password", "{PLAIN}"+password)
			} else {
				s.route(t, c.user, name)
			}
			c.works(t)
		})
	}
	wantNoComplaint(t, d)
}

// With the settings of the handbook Dovecot takes tokens, and no bad ones.
func TestTheDocumentedTokenSettingsOfDovecotWork(t *testing.T) {
	t.Parallel()
	p := openid.Start(t, tokenUser)
	check := p.Dovecot(t, openid.Mail, "")
	provider := strings.NewReplacer("https://CLIENT:SECRET@id.example.org/introspect", check.Introspection)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Site: func(d *testbed.Dovecot) string {
		blocks := documented(t, "Tokens at Dovecot "+series(t))
		const separate = "/etc/dovecot/dovecot-oauth2.conf.ext"
		file := filepath.Join(d.Dir, "dovecot-oauth2.conf.ext")
		if strings.Contains(blocks[0], separate) {
			if err := os.WriteFile(file, []byte(provider.Replace(blocks[1])), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		own := strings.Replace(provider.Replace(blocks[0]), separate, d.Inside(file), 1)
		return here(d, documented(t, "Dovecot "+series(t))[0]) + users(t) + own
	}})
	for _, login := range []string{upstream.OAuthLogin, upstream.Passthrough} {
		b := startBinary(t, d.CA, fmt.Sprintf(`backends:
  east: {address: %q, server_name: %s, ca: %s, login: %s}
auth: {methods: [passthrough], mechanisms: [OAUTHBEARER, XOAUTH2, PLAIN, LOGIN]}
routing: {source: static, static: {default: east}}`, d.TLS, testbed.DovecotName, d.CA.File, login))
		token := p.Login(t, openid.Mail, tokenUser).Access
		for _, mechanism := range []string{"OAUTHBEARER", "XOAUTH2"} {
			entersWith(t, b, bringing(mechanism, tokenUser, token))
			_, end := refusedWith(t, b, bringing(mechanism, tokenUser, token+"x"), "AQ==")
			if !strings.Contains(end, " NO [AUTHENTICATIONFAILED] ") {
				t.Errorf("%s, %s: a bad token: %s", login, mechanism, end)
			}
		}
	}
	wantNoComplaint(t, d)
}

// Without TLS the documented settings let passwords in from the gateway's address
// alone.
func TestTheDocumentedSettingsLetNoStrangerInWithoutTLS(t *testing.T) {
	t.Parallel()
	for trusted, want := range map[string]string{"127.0.0.2": " OK ", "127.0.0.3": "PRIVACYREQUIRED"} {
		d := testbed.StartDovecot(t, testbed.DovecotConfig{Master: master, MasterPassword: masterPassword, Site: func(d *testbed.Dovecot) string {
			return strings.ReplaceAll(here(d, documented(t, "Dovecot "+series(t))[0]), "networks = 127.0.0.1", "networks = "+trusted) + users(t)
		}})
		client := enter(t, endpoint{address: d.Plain}, "127.0.0.2")
		if got, err := client.Do("LOGIN amy " + password); err != nil || !strings.Contains(shown(got), want) {
			t.Errorf("%s is trusted: %v, %v; want %q", trusted, got, err, want)
		}
	}
}
