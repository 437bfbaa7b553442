//go:build unix

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// A FIFO without a writer must not block the start of a gateway.
func TestAFIFOInsteadOfAFileIsAnErrorAtOnce(t *testing.T) {
	t.Parallel()
	_, files := validConfig(t)
	for name := range files {
		file, files := validConfig(t)
		if err := errors.Join(os.Remove(files[name]), syscall.Mkfifo(files[name], 0o600)); err != nil {
			t.Fatal(err)
		}
		if got := imapgate(t, "", "check", "--config", file); got.status != 1 || !strings.Contains(got.err, "not a regular file") {
			t.Errorf("%s: %+v", name, got)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"snapshot", "config", "secret"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: ["127.0.0.1:1"]}
routing: {snapshot: %q}
backends: {east: {address: "127.0.0.1:143", tls: none}}
`, filepath.Join(dir, "snapshot")))
	if got := imapgate(t, "", "check", "--config", file); got.status != 0 || !strings.Contains(got.err, "routing.snapshot: ") ||
		!strings.Contains(got.err, "not a regular file") {
		t.Errorf("a snapshot: %+v", got)
	}
	if got := imapgate(t, "", "check", "--config", filepath.Join(dir, "config")); got.status != 1 {
		t.Errorf("the configuration: %+v", got)
	}
	file = write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: ["127.0.0.1:1"], password_file: %[1]q}
backends: {east: {address: "127.0.0.1:143", tls: none}}
admin: {token_file: %[1]q}
`, filepath.Join(dir, "secret")))
	if got := imapgate(t, "", "check", "--config", file); got.status != 1 || strings.Count(got.err, "not a regular file") != 2 {
		t.Errorf("secrets: %+v", got)
	}
}
