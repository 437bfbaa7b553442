package tests

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// mountFullDisk mounts a file system of 64 KB and fills it. free makes room again.
func mountFullDisk(t *testing.T) (dir string, free func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("NOT TESTED, a full disk: mounting a small tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 1<<20), 0o600); err == nil {
		t.Fatal("the disk is larger than it should be")
	}
	return dir, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDiskRefusesNewSessionsAndKeepsOthers(t *testing.T) {
	t.Parallel()
	dir, free := mountFullDisk(t)
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	b := startProcess(t, backend.CA, eastBackendConf(backend.CA, backend.TLS), "routing: {source: static, static: {default: east}}")
	staying := mustDial(t, b.endpoint("implicit"), "")
	if got, err := staying.Do("LOGIN alice@example.org " + password); err != nil || !strings.Contains(formatResponses(got), " OK ") {
		t.Fatal(got, err)
	}
	log, small := filepath.Join(b.dir, "audit"), filepath.Join(dir, "audit")
	for _, step := range []error{os.Symlink(small, log+".new"), os.Rename(log, log+".1"), os.Rename(log+".new", log), b.process.Signal(syscall.SIGHUP)} {
		if step != nil {
			t.Fatal(step)
		}
	}
	testkit.Eventually(t, "the disk to be full", func() bool {
		if c, err := net.Dial("tcp", b.addresses["starttls"]); err == nil {
			_ = c.Close() // the end of a connection is a record
		}
		return b.sumMetric(t, "imapgate_audit_ready") == 0
	})
	if r, err := http.Get("http://" + b.addresses["admin"] + "/readyz"); err != nil || r.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("readyz: %v, %v", r, err)
	}
	newClient := mustDial(t, b.endpoint("implicit"), "")
	if got, err := newClient.Do("LOGIN alice@example.org " + password); err != nil || !strings.Contains(formatResponses(got), " NO [UNAVAILABLE] ") {
		t.Errorf("a new client gets %v, %v", got, err)
	}
	for range 20 {
		if got, err := staying.Do("NOOP"); err != nil || !strings.Contains(formatResponses(got), " OK ") {
			t.Fatalf("a session gets %v, %v", got, err)
		}
	}
	free()
	testkit.Eventually(t, "the log to be written again", func() bool { return b.sumMetric(t, "imapgate_audit_ready") == 1 })
	if got, err := newClient.Do("LOGIN alice@example.org " + password); err != nil || !strings.Contains(formatResponses(got), " OK ") {
		t.Errorf("once there is room again, the new client gets %v, %v", got, err)
	}
	_ = staying.Close()
	_ = newClient.Close()
	testkit.Eventually(t, "both sessions to end", func() bool { return b.sumMetric(t, "imapgate_sessions") == 0 })
	b.process.Stop()
	text, err := os.ReadFile(small)
	if err != nil {
		t.Fatal(err)
	}
	ends := 0
	for line := range bytes.Lines(text) {
		if !json.Valid(line) {
			t.Errorf("not a record: %q", line)
		}
		if bytes.Contains(line, []byte(`"session_ended"`)) {
			ends++
		}
	}
	if ends != 2 {
		t.Errorf("%d sessions have an end", ends)
	}
}
