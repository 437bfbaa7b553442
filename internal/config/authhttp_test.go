package config

import (
	"os"
	"strings"
	"testing"
	"time"

	"imapgate/internal/identity"
)

func TestAuthServersAreReadWithTheirSecrets(t *testing.T) {
	file := writeSecretFile(t, "s3cret\n")
	c := mustParse(t, minimal+`
auth:
  http:
    urls: [http://127.0.0.1:9000/auth, https://auth.internal]
    headers: {X-Realm: mail}
    header_files: {X-Auth-Key: `+file+`}
`)
	cfg := c.Auth.HTTP
	if cfg.Timeout != 5*time.Second || len(cfg.URLs) != 2 || cfg.PassClientCert {
		t.Errorf("%+v", cfg)
	}
	if cfg.Headers["X-Realm"] != "mail" || cfg.Secrets["X-Auth-Key"].Current() != identity.NewSecret("s3cret") {
		t.Errorf("headers %v, %v", cfg.Headers, cfg.Secrets)
	}
	for text, taken := range map[string]bool{"a\x7fb\n": false, "renewed\n": true} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if changed, err := c.SecretFiles[0].Reload(); changed != taken || (err == nil) != taken || err != nil && strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, %v", text, changed, err)
		}
	}
}

func TestAuthHTTPProblemsAreReported(t *testing.T) {
	for text, want := range map[string]string{
		"urls: [\"127.0.0.1:9000\"]":                                 "auth.http.urls[0]: a URL such as",
		"urls: [\"http://u:hunter2@a/\"]":                            "auth.http.urls[0]: the URL may have neither",
		"{urls: [http://a], ca: x.pem}":                              "auth.http.urls: ca and cert are used only with https",
		"{urls: [https://a], cert: x.pem}":                           "auth.http.cert: needs key",
		"pass_client_cert: true":                                     "auth.http.pass_client_cert: needs tls.client_ca",
		"headers: {Auth-User: root}":                                 "auth.http.headers[\"Auth-User\"]: is written by the gateway itself",
		"headers: {X Y: z}":                                          "is not a name of letters",
		"header_files: {X-Key: /nonexistent/key}":                    "auth.http.header_files[\"X-Key\"]: no such file",
		"header_files: {X-Key: ''}":                                  "auth.http.header_files[\"X-Key\"]: is empty",
		"{headers: {X-Key: a}, header_files: {x-key: /nonexistent}}": "duplicate key",
		"timeout: 0s":                                                "is less than 100ms",
		"urls: [" + strings.Repeat("http://a, ", 16) + "http://a]":   "auth.http.urls: has more than 16",
	} {
		if !strings.HasPrefix(text, "{") {
			text = "{" + text + "}"
		}
		_, err := parse("test.yaml", []byte(minimal+"auth: {http: "+text+"}\n"), noEnv)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %q is missing: %v", text, want, err)
		}
	}
}
