package config

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const samplePath = "../../deploy/imapgate.yaml"

func TestSampleFileIsValid(t *testing.T) {
	c, err := Load(samplePath)
	if err != nil {
		t.Fatal(err)
	}
	if c.Redis == nil || len(c.Backends) < 2 || len(c.Listeners) < 2 {
		t.Errorf("the sample does not show the main case: %+v", c)
	}
}

func TestUnitFileIsValid(t *testing.T) {
	unit, err := os.ReadFile("../../deploy/imapgate.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, must := range []string{"NoNewPrivileges=yes", "ProtectSystem=strict", "LimitCORE=0", "LimitNOFILE=1048576",
		"CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "AmbientCapabilities=CAP_NET_BIND_SERVICE", "MemoryDenyWriteExecute=yes",
		"UMask=0077", "StateDirectory=imapgate", "ExecStartPre=", "KillSignal=SIGTERM"} {
		if !strings.Contains(string(unit), "\n"+must) {
			t.Errorf("%s is missing", must)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("the unit was not verified by systemd itself: systemd-analyze is not installed")
	}
	// The binary is not installed at the unit's path; everything else must be valid.
	text := strings.ReplaceAll(string(unit), "/usr/bin/imapgate", "/bin/true")
	path := filepath.Join(t.TempDir(), "imapgate.service")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", path).CombinedOutput(); err != nil || strings.Contains(string(out), "Unknown key") {
		t.Errorf("%v: %s", err, out)
	}
}
