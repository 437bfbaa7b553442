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

// RootEnv names, in the environment, a folder with the root of another
// system, as .ci/root makes it. Servers that are installed there run there instead
// of on the machine; they use the machine's network.
const RootEnv = "IMAPGATE_TESTBED_ROOT"

// sysroot is where a server runs: on the machine itself, or in a root folder. Paths
// in settings of a server are as the server sees them; all others are the
// machine's.
type sysroot struct{ root string } // "": the machine

// locateProgram finds a program and the place it is installed in: the root that the
// environment names, if it is there, else the machine.
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

// Command is a program to be run once, in the root that the environment names or
// on the machine.
func Command(t testing.TB, name, debianPackage string, args ...string) *exec.Cmd {
	t.Helper()
	p, program := locateProgram(t, name, debianPackage)
	return p.command(program, args...)
}

// command is a program of this place.
func (p sysroot) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	if p.root != "" {
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: p.root}
	}
	return cmd
}

// start runs a program of this place until the test ends.
func (p sysroot) start(t testing.TB, program string, args ...string) (*Process, error) {
	t.Helper()
	return startCommand(t, p.command(program, args...))
}

// makeDir makes a folder that programs of this place can reach.
func (p sysroot) makeDir(t testing.TB, prefix string) string {
	t.Helper()
	if p.root == "" {
		return makeDir(t, prefix)
	}
	return makeDirIn(t, filepath.Join(p.root, "tmp"), prefix)
}

// innerPath is a path as programs of this place see it.
func (p sysroot) innerPath(path string) string { return strings.TrimPrefix(path, p.root) }

// copyIn copies a file of the machine into a folder of this place, and gives the
// copy's path as programs of this place see it.
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

// readVersion is the first word that a program answers to --version.
func (p sysroot) readVersion(t testing.TB, program string) string {
	t.Helper()
	out, err := p.command(program, "--version").Output()
	words := strings.Fields(string(out))
	if err != nil || len(words) == 0 {
		t.Fatalf("%s --version: %v, %q", program, err, out)
	}
	return words[0]
}
