package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

// controlGroup creates a control group with a memory limit in bytes, and an inner
// one without its own limit, as systemd's MemoryMax= does for a service of a slice.
// It returns the inner group's directory.
func controlGroup(t *testing.T, limit int64) string {
	t.Helper()
	outer, file := "/sys/fs/cgroup", "memory.max"
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(own)) {
		if _, path, ok := strings.Cut(strings.TrimSpace(line), ":memory:"); ok { // version 1
			outer, file = filepath.Join(outer, "memory", path), "memory.limit_in_bytes"
		}
	}
	if file == "memory.max" {
		_ = os.WriteFile(filepath.Join(outer, "cgroup.subtree_control"), []byte("+memory"), 0) // an error shows in the limit
	}
	outer = filepath.Join(outer, fmt.Sprintf("imapgate-test-%d", os.Getpid()))
	inner := filepath.Join(outer, "service")
	t.Cleanup(func() { _, _ = os.Remove(inner), os.Remove(outer) })
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Skip("no control group can be made: ", err)
	}
	if err := os.WriteFile(filepath.Join(outer, file), fmt.Append(nil, limit), 0); err != nil {
		t.Skip("no limit can be set: ", err)
	}
	return inner
}

// startAndReadLog runs serve after the shell commands in first, and returns its log
// line about the memory limit, or "".
func startAndReadLog(t *testing.T, first string, env ...string) string {
	t.Helper()
	config, _ := gatewayConfig(t, staticEast)
	cmd := exec.Command("/bin/sh", "-c", first+` && exec "$0" "$@"`, os.Args[0], "serve", "--config", config)
	cmd.Env = append(append(os.Environ(), runMainVariable+"=1"), env...)
	s := startProcess(t, cmd)
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait() // killed
	for line := range strings.Lines(s.String()) {
		if strings.Contains(line, "memory limit") {
			_, fields, _ := strings.Cut(line, `"msg":`)
			return strings.TrimSpace(fields)
		}
	}
	return ""
}

func TestTheLimitOfAParentControlGroupIsRespected(t *testing.T) {
	enter := fmt.Sprintf("echo $$ >%s/cgroup.procs", controlGroup(t, 1<<30))
	if got := startAndReadLog(t, enter); got != `"memory limit","bytes":858993459}` {
		t.Errorf("logged %s", got)
	}
	if got := startAndReadLog(t, enter, "GOMEMLIMIT=300MiB"); got != `"memory limit","bytes":314572800}` {
		t.Errorf("with GOMEMLIMIT: logged %s", got)
	}
	// ProcSubset=pid, ProtectProc=invisible and ProtectControlGroups=yes, as in deploy/imapgate.service
	const hide = ` && exec unshare -m /bin/sh -c 'mount -t proc -o subset=pid,hidepid=invisible proc /proc && ` +
		`for fs in /sys/fs/cgroup/memory /sys/fs/cgroup; do ! mountpoint -q $fs || mount -o remount,bind,ro $fs || exit; done`
	if err := exec.Command("/bin/sh", "-c", "true"+hide+"'").Run(); err != nil {
		t.Skip("no mount can be made: ", err)
	}
	if got := startAndReadLog(t, enter+hide+` && exec "$0" "$@"' "$0" "$@"`); got != `"memory limit","bytes":858993459}` {
		t.Errorf("in the unit's file systems: logged %s", got)
	}
}

func TestNoMemoryLimitLogsNothing(t *testing.T) {
	if _, err := memlimit.FromCgroup(); !errors.Is(err, memlimit.ErrNoLimit) {
		t.Skip("there is one: ", err)
	}
	if got := startAndReadLog(t, "true", "GOMEMLIMIT=off"); got != "" {
		t.Errorf("logged %s", got)
	}
	if got := startAndReadLog(t, "unset GOMEMLIMIT"); got != "" {
		t.Errorf("logged %s", got)
	}
}
