//go:build unix

package testbed

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// RootEnv is the environment variable that names the root folder of another system, as
// .ci/root makes it. Servers installed in it run inside it instead of on the machine, but
// use the machine's network.
const RootEnv = "IMAPGATE_TESTBED_ROOT"

// sysroot is the root a server runs in: the machine's own, or a folder. Paths in a
// server's settings are relative to its root; all others are paths on the machine.
type sysroot struct{ root string } // "": the machine's own

// locateProgram finds a program and its root: the folder named by RootEnv if the program
// is installed there, else the machine.
func locateProgram(t testing.TB, name, debianPackage string) (p sysroot, program string) {
	t.Helper()
	if root := os.Getenv(RootEnv); root != "" {
		for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
			program := filepath.Join(dir, name)
			if _, err := os.Stat(filepath.Join(root, program)); err != nil {
				continue
			}
			if os.Geteuid() != 0 {
				t.Fatalf("only root can run %s in %s", name, root)
			}
			return sysroot{root}, program
		}
	}
	return sysroot{}, FindProgram(t, name, debianPackage)
}

// Command returns a command that is not started, in the root named by RootEnv or on the
// machine.
func Command(t testing.TB, name, debianPackage string, args ...string) *exec.Cmd {
	t.Helper()
	p, program := locateProgram(t, name, debianPackage)
	return p.command(program, args...)
}

// command returns a command inside the root.
func (p sysroot) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	if p.root != "" {
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: p.root}
	}
	return cmd
}

// start runs a program of the root until the test ends.
func (p sysroot) start(t testing.TB, program string, args ...string) (*Process, error) {
	t.Helper()
	return startCommand(t, p.command(program, args...))
}

// makeDir creates a folder inside the root. It returns its path on the machine.
func (p sysroot) makeDir(t testing.TB, prefix string) string {
	t.Helper()
	if p.root == "" {
		return makeDir(t, prefix)
	}
	return makeDirIn(t, filepath.Join(p.root, "tmp"), prefix)
}

// innerPath converts a path on the machine to the path inside the root.
func (p sysroot) innerPath(path string) string { return strings.TrimPrefix(path, p.root) }

// copyIn copies a file of the machine into a folder of the root, and returns the path of
// the copy inside the root.
func (p sysroot) copyIn(t testing.TB, file, dir, name string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("read a file for a server: %v", err)
	}
	target := filepath.Join(dir, name)
	if err := os.WriteFile(target, text, 0o600); err != nil {
		t.Fatalf("write a file for a server: %v", err)
	}
	return p.innerPath(target)
}

// readVersion returns the first word a program prints for --version.
func (p sysroot) readVersion(t testing.TB, program string) string {
	t.Helper()
	out, err := p.command(program, "--version").Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) == 0 {
		t.Fatalf("%s --version: %v, %q", program, err, out)
	}
	return words[0]
}
