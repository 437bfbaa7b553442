package gateway

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/testbed"
)

func TestPathIsShortForOneSink(t *testing.T) {
	cfg := load(t, "audit: {path: /var/log/a, on_failure: drop}")
	got := (&Gateway{cfg: cfg, files: &watchedFiles{}}).auditConfig()
	if got.Path != "/var/log/a" || got.OnFailure != "drop" || got.Commands != audit.NoCommands || len(got.Sinks) > 0 {
		t.Errorf("%+v", got)
	}
}

func TestSinksReplaceThePathAndHaveTheirFiles(t *testing.T) {
	ca := testbed.NewCA(t)
	file := filepath.Join(t.TempDir(), "audit.log")
	cfg := load(t, `audit:
  chain: true
  sinks:
    - {type: file, path: `+file+`}
    - {type: redis, on_failure: drop}
    - {type: syslog, name: far, address: "tls://logs.internal:6514", ca: `+ca.File+`, on_failure: drop}
`)
	f, err := openFiles(cfg, zap.NewNop())
	got := (&Gateway{cfg: cfg, files: f}).auditConfig()
	if err != nil || !got.Chain || got.Sinks[1].Stream != "imapgate:audit" || got.Sinks[1].MaxRecords != 100_000 {
		t.Fatalf("%+v, %v", got, err)
	}
	if s := got.Sinks[2].TLS(); s == nil || s.ServerName != "logs.internal" || s.RootCAs == nil || len(s.NextProtos) > 0 {
		t.Errorf("%+v", s)
	}
	g, err := Open(cfg, Options{Log: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	var names []string
	for _, s := range g.audit.Sinks() {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{"file", "redis", "far"}) {
		t.Errorf("%q", names)
	}
	cfg.Audit.Sinks[2].CA = "/nonexistent/ca.pem"
	if _, err := openFiles(cfg, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "audit.sinks[2].ca: ") {
		t.Errorf("a missing CA: %v", err)
	}
}
