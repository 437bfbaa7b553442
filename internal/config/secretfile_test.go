package config

import (
	"os"
	"strings"
	"testing"

	"imapgate/internal/identity"
)

func TestASecretIsReloaded(t *testing.T) {
	master, scram := writeSecretFile(t, "first\n"), writeSecretFile(t, "0123456789abcdef\n")
	c := mustParse(t, `
listeners: [{tls: none}]
routing: {source: static, static: {default: east}}
backends: {east: {address: "a:1", login: master, master: {user: m, password_file: `+master+`}}}
auth: {methods: [redis], scram_secret_file: `+scram+`}
redis: {}
`)
	files := make(map[string]*SecretFile)
	for _, f := range c.SecretFiles {
		files[f.Key] = f
	}
	f := files["backends.east.master.password_file"]
	if f == nil || len(files) != 2 || f.Path != master {
		t.Fatalf("%v", files)
	}
	password := c.Backends["east"].Master.Password
	for _, step := range []struct {
		text, holds, wrong string
		changed            bool
	}{
		{"first\n", "first", "", false},
		{"second", "second", "", true},
		{"", "second", "empty", false},
		{"two\nlines\n", "second", "more than one line", false},
		{"third\n", "third", "", true},
	} {
		if err := os.WriteFile(master, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		changed, err := f.Reload()
		if changed != step.changed || (err == nil) != (step.wrong == "") || err != nil && !strings.Contains(err.Error(), step.wrong) {
			t.Errorf("%q: %v, %v", step.text, changed, err)
		}
		if got := password.Current(); got != identity.NewSecret(step.holds) {
			t.Errorf("%q: it holds %q", step.text, got.Reveal())
		}
	}
	if err := os.Chmod(master, 0o604); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Reload(); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("a world-readable file: %v", err)
	}

	fixed := files["auth.scram_secret_file"]
	if err := os.WriteFile(scram, []byte("another-0123456789\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if changed, err := fixed.Reload(); changed || err == nil || !strings.Contains(err.Error(), "restart") || strings.Contains(err.Error(), "another") {
		t.Errorf("%v, %v", changed, err)
	}
	if got := c.Auth.SCRAMSecret.Current(); got != identity.NewSecret("0123456789abcdef") {
		t.Error("the secret of SCRAM has changed")
	}
	if err := os.WriteFile(scram, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fixed.Reload(); err == nil || !strings.Contains(err.Error(), "fewer than 16") {
		t.Error(err)
	}
}
