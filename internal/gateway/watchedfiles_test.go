//go:build unix

package gateway

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/settings"
	"imapgate/internal/testbed"
)

// configWithAllFiles writes a configuration with every key that names a watched
// file.
func configWithAllFiles(t testing.TB) (path string, cert string) {
	t.Helper()
	ca := testbed.NewCA(t)
	cert, key := ca.Issue(t, "mail.example.org", "127.0.0.1")
	dir := t.TempDir()
	more, moreKey := ca.Issue(t, "imap.example.org")
	move(t, more, filepath.Join(dir, "more.pem"))
	move(t, moreKey, filepath.Join(dir, "more.key"))
	pair := fmt.Sprintf("{cert: %q, key: %q}", cert, key)
	secret := func(name string) string { return write(t, name, "0123456789abcdef\n") }
	tokens := write(t, "tokens", "alice operator "+strings.Repeat("0", 64)+"\n")
	users := write(t, "users", "alice@example.org:{PLAIN}pw\n")
	return write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0"}]
tls: {certificates: [%[1]s], certificate_dir: %[2]q, client_ca: %[3]q}
redis: {addresses: ["127.0.0.1:1"], sentinel_master: m, sentinel_password_file: %[13]q, tls: true, ca: %[3]q, client_certificate: %[1]s, password_file: %[4]q}
auth:
  methods: [file, http, oauth]
  file: {path: %[5]q}
  scram_secret_file: %[6]q
  http: {urls: ["https://127.0.0.1:1/"], ca: %[3]q, cert: %[7]q, key: %[8]q, header_files: {X-Key: %[9]q}}
  oauth: {introspection_url: "https://127.0.0.1:1/", scope: imap, client_id: gate, client_secret_file: %[10]q, ca: %[3]q, client_certificate: %[1]s}
backends:
  east: {address: "127.0.0.1:993", ca: %[3]q, client_certificate: %[1]s, login: master, master: {user: m, password_file: %[11]q}, health: {check: login, user: m, password_file: %[11]q}}
audit: {sinks: [{type: syslog, address: "tls://127.0.0.1:1", ca: %[3]q, client_certificate: %[1]s}]}
admin: {address: "127.0.0.1:0", token_file: %[12]q, tls: %[1]s, tokens_file: %[14]q}
`, pair, dir, ca.File, secret("redis"), users, secret("scram"), cert, key, secret("header"), secret("oauth"), secret("master"), secret("token"), secret("sentinel"), tokens)), cert
}

func move(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestEveryFileOfTheConfigurationIsWatched(t *testing.T) {
	path, _ := configWithAllFiles(t)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := openFiles(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	watched, seen := f.Files(), 0
	var walk func(v reflect.Value, key string)
	walk = func(v reflect.Value, key string) {
		switch v.Kind() {
		case reflect.Pointer:
			if v.IsNil() {
				t.Errorf("the test has no %s", key)
				return
			}
			walk(v.Elem(), key)
			return
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i), fmt.Sprintf("%s[%d]", key, i))
			}
			return
		case reflect.Map:
			for _, name := range v.MapKeys() {
				walk(v.MapIndex(name), key+"."+name.String())
			}
			return
		case reflect.Struct:
		default:
			return
		}
		for _, field := range settings.Fields(v.Type()) {
			value := v.FieldByIndex(field.Index)
			if field.Name == "proxy_protocol" || field.Name == "limits" {
				continue
			}
			here := strings.TrimPrefix(key+"."+field.Name, ".")
			switch field.FileEffect {
			case "tls", "secret", "restart":
			default:
				walk(value, here)
				continue
			}
			var files []string
			switch value := value.Interface().(type) {
			case string:
				files = []string{value}
			case map[string]string:
				for _, value := range value {
					files = append(files, value)
				}
			}
			for _, file := range files {
				seen++
				if file == "" {
					t.Errorf("the test has no %s", here)
				} else if !slices.Contains(watched, file) {
					t.Errorf("%s: %s is not watched", here, file)
				}
			}
		}
	}
	walk(reflect.ValueOf(cfg).Elem(), "")
	if seen < 24 {
		t.Errorf("only %d files were found", seen)
	}
	if changed, err := f.Reload(); len(changed) > 0 || err != nil {
		t.Errorf("unchanged files: %q, %v", changed, err)
	}
}

func TestCertificateExpiryIsInTheMetrics(t *testing.T) {
	path, cert := configWithAllFiles(t)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.TLS.Certificates = nil // only where the gateway presents it
	f, err := openFiles(cfg, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	var listed []string
	for _, c := range f.certificates() {
		listed = append(listed, c.File)
	}
	if !slices.Contains(listed, cert) || !slices.Contains(listed, filepath.Join(cfg.TLS.CertificateDir, "more.pem")) {
		t.Errorf("%q", listed)
	}
}

func TestCheckReadsTheFilesOfClientCertificatesAndDirectories(t *testing.T) {
	path, _ := configWithAllFiles(t)
	cfg, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if invalid, warned := Check(cfg); invalid != nil || warned != nil && strings.Contains(warned.Error(), "starts without it") {
		t.Error(invalid, warned)
	}
	stray := filepath.Join(cfg.TLS.CertificateDir, "stray.pem")
	if err := os.WriteFile(stray, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.TLS.CertificateDir, "another.pem"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	invalid, strays := Check(cfg)
	for _, file := range []string{stray, filepath.Join(cfg.TLS.CertificateDir, "another.pem")} { // each is reported
		if want := ": tls.certificate_dir: " + file + ": there is no PEM in it; the gateway starts without it"; invalid != nil || !strings.Contains(strays.Error(), want) {
			t.Errorf("no %q in %v, %v", want, invalid, strays)
		}
	}
	if err := os.WriteFile(cfg.Backends["east"].ClientCertificate.Key, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	invalid, _ = Check(cfg)
	for _, want := range []string{" tls.certificates[0].key: ", " redis.client_certificate.key: ", " auth.http.key: ", " auth.oauth.client_certificate.key: ",
		" audit.sinks[0].client_certificate.key: ", " backends.east.client_certificate.key: "} {
		if invalid == nil || !strings.Contains(invalid.Error(), want) {
			t.Errorf("no %q in:\n%v", want, invalid)
		}
	}
}
