package gateway

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/testkit"
)

// write writes a file to a new directory of the test.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// load loads a configuration with these blocks; it needs no file.
func load(t testing.TB, blocks string) *config.Config {
	t.Helper()
	cfg, err := config.Load(write(t, "imapgate.yaml", `
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: ["127.0.0.1:1"]}
backends: {east: {address: "127.0.0.1:143", tls: none}}
admin: {address: "127.0.0.1:0"}
`+blocks))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// openCount returns the numbers of goroutines and of open descriptors.
func openCount(t testing.TB) (goroutines, descriptors int) {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip(err)
	}
	return runtime.NumGoroutine(), len(files)
}

// A failure at any step, and Close without Run, leave nothing open.
func TestOpenReleasesWhatItOpened(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	logPath := filepath.Join(t.TempDir(), "audit.log")
	faults := map[string]func(*config.Config){
		"":                     func(*config.Config) {},
		"tls":                  func(c *config.Config) { c.Listeners[0].TLS = "implicit" },
		"routing":              func(c *config.Config) { c.Routing.Snapshot = "/nonexistent/snapshot"; c.Routing.Source = "none" },
		"auth.file.path":       func(c *config.Config) { c.Auth.Methods = []string{"file"}; c.Auth.File.Path = "/nonexistent/users" },
		"audit.path":           func(c *config.Config) { c.Audit.Path = "/nonexistent/audit" },
		"listeners[0].address": func(c *config.Config) { c.Listeners[0].Address = taken.Addr().String() },
		"admin.address":        func(c *config.Config) { c.Admin.Address = taken.Addr().String() },
	}
	for key, inject := range faults {
		cfg := load(t, "audit: {path: "+logPath+"}")
		inject(cfg)
		goroutines, descriptors := openCount(t) // the runtime's own goroutines come and go
		g, err := Open(cfg, Options{Log: zap.NewNop()})
		switch {
		case key == "" && err == nil:
			g.Close()
		case key == "" || err == nil || !strings.Contains(err.Error(), ": "+key+": "):
			t.Errorf("%s: %v", key, err)
		}
		testkit.Eventually(t, fmt.Sprintf("%d goroutines and %d descriptors at most, after a failure about %q", goroutines, descriptors, key), func() bool {
			g, d := openCount(t)
			return g <= goroutines && d <= descriptors
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	g, err := Open(load(t, "audit: {path: "+filepath.Join(t.TempDir(), "audit.log")+"}"), Options{Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	for _, addr := range g.Addrs() {
		c, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
