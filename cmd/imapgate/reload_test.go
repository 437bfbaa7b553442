//go:build unix

package main

import (
	"crypto/tls"
	"fmt"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A running gateway uses the renewed CA of its backend, another certificate of its
// directory, and another token, and logs that the backend demands a client
// certificate.
func TestARunningGatewayReloadsItsFiles(t *testing.T) {
	t.Parallel()
	ca, otherCA := testbed.NewCA(t), testbed.NewCA(t)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{Password: "pw", CA: ca, ClientCA: ca})
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	put := func(from, name string) {
		t.Helper()
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(at(name), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	live := at("live")
	if err := os.Mkdir(live, 0o700); err != nil {
		t.Fatal(err)
	}
	pair := func(from *testbed.CA, name, base string) {
		cert, key := from.Issue(t, name)
		put(cert, base+".pem")
		put(key, base+".key")
	}
	pair(ca, "one.example.org", "live/one")
	put(otherCA.File, "ca.pem")
	pair(otherCA, "gateway", "client")
	token := write(t, "token", "0123456789abcdef\n")
	config := write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{name: plain, address: "127.0.0.1:0", tls: none}, {name: imaps, address: "127.0.0.1:0"}]
tls: {certificate_dir: %q}
auth: {default_domain: example.org}
routing: {source: static, static: {default: east}}
backends:
  east: {address: %q, server_name: %q, ca: %q, client_certificate: {cert: %q, key: %q}}
limits: {drain_timeout: 0s}
audit: {path: %q}
admin: {address: "127.0.0.1:0", token_file: %q}
`, live, d.TLS, testbed.DovecotName, at("ca.pem"), at("client.pem"), at("client.key"), at("audit.log"), token))
	s := startServe(t, config)
	imaps := s.awaitMatch(t, `"listener":"imaps","address":"([^"]+)"`)[1]
	awaitAnswer := func(want string) {
		t.Helper()
		testkit.Eventually(t, want, func() bool {
			c := connect(t, s.plain)
			defer c.Close()
			c.writeLine(t, "a LOGIN alice pw")
			line, err := c.in.ReadString('\n')
			return err == nil && strings.HasPrefix(line, want)
		})
	}
	awaitAnswer("a NO [UNAVAILABLE]") // an unknown CA
	put(ca.File, "ca.pem")
	s.awaitMatch(t, `"files reloaded","key":"backends.east"`)
	awaitAnswer("a NO [UNAVAILABLE]") // the backend does not trust our certificate
	s.awaitMatch(t, `"reason":"backend_tls".*the backend demands a client certificate that it trusts`)
	pair(ca, "gateway", "client")
	awaitAnswer("a OK ")

	pair(ca, "two.example.org", "live/two")
	testkit.Eventually(t, "the new pair to be served", func() bool {
		c, err := tls.Dial("tcp", imaps, ca.ClientTLS("two.example.org"))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})

	if err := os.WriteFile(token, []byte("another-token-of-ours\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the new token to be accepted", func() bool {
		r, err := http.NewRequest(http.MethodGet, "http://"+s.admin+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer another-token-of-ours")
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	if strings.Contains(s.String(), "another-token") || strings.Contains(s.String(), "0123456789abcdef") {
		t.Error("a token is in the log")
	}
}
