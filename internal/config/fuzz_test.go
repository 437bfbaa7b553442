package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const canary = "CANARY-8f3a"

func TestSecretsAreNeverInErrors(t *testing.T) {
	long := writeSecretFile(t, canary+"\n"+canary)
	for name, text := range map[string]string{
		"a secret as an unknown key's value": "redis: {password: " + canary + "}",
		"a secret for a block":               "redis: " + canary,
		"a secret in place of its file":      "redis: {password_file: " + canary + "}",
		"a secret of two lines":              "redis: {password_file: " + long + "}",
		"a secret where YAML ends":           "redis: {password: [" + canary,
		"a secret beside a syntax error":     "redis:\n  password: " + canary + "\n bad: indentation: " + canary,
		"a short token":                      "admin: {token_file: " + writeSecretFile(t, canary) + "}",
		"a secret of a list":                 "redis: {password_file: [" + canary + "]}",
	} {
		_, err := parse("f", []byte(text), func(string) (string, bool) { return "", false })
		if err == nil || strings.Contains(err.Error(), canary) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := parse("f", []byte("redis: {}"), func(string) (string, bool) { return canary + "\n", true })
	if err == nil || strings.Contains(err.Error(), canary) {
		t.Errorf("a bad secret of the environment: %v", err)
	}
}

func TestLoadExplainsUnreadableFiles(t *testing.T) {
	big := filepath.Join(t.TempDir(), "big.yaml")
	if err := os.WriteFile(big, make([]byte, maxFileBytes+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{"/nonexistent.yaml": "no such file", big: "is larger than", t.TempDir(): "directory"} {
		if _, err := Load(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// FuzzConfig checks that a text yields either an error with positions or a
// configuration within all bounds, and that the output never contains the secrets it
// names.
func FuzzConfig(f *testing.F) {
	dir := f.TempDir()
	secret := filepath.Join(dir, "s")
	if err := os.WriteFile(secret, []byte(canary), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Add(minimal)
	f.Add(contractConfig(secret, secret))
	f.Add("listeners: [{proxy_protocol: {trusted: [::/0]}}]")
	f.Add("a: &a [*a]\n? b\n: - c\n<<: *a\n--- !!x |\n  d")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4<<10 {
			t.Skip("size finds nothing new here")
		}
		c, err := parse("f", []byte(text), noEnv)
		if err != nil {
			var invalid *InvalidError
			if !errors.As(err, &invalid) || len(invalid.Problems) == 0 || strings.Contains(err.Error(), canary) {
				t.Fatalf("%v", err)
			}
			return
		}
		if len(c.Listeners) == 0 || len(c.Backends) == 0 || len(c.Auth.Methods) == 0 {
			t.Fatalf("accepted, but not complete: %+v", c)
		}
		for name, b := range c.Backends {
			if b.Name != name || !isBackendName(name) || b.Address == "" || b.Mode != "splice" || b.Login == "master" && b.Master.Password.IsZero() {
				t.Fatalf("accepted: %+v", b)
			}
		}
		for _, l := range c.Listeners {
			if l.TLS != "none" && len(c.TLS.Certificates) == 0 || l.ProxyProtocol != nil && len(l.ProxyProtocol.Trusted) == 0 {
				t.Fatalf("accepted: %+v", l)
			}
		}
	})
}
