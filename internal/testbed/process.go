//go:build unix

// Package testbed starts the real servers that tests use: Dovecot, Cyrus and Courier as
// mail backends, Redis as the routing store, and nginx as a mail proxy for comparison.
// Each server listens on 127.0.0.1 on ports the kernel chose and keeps its files in its
// own folder. It ends, with all its children, when the test that started it ends.
//
// The package is for tests only and does not depend on the gateway. A test owns the
// servers it starts; a server owns its process group and its folder.
package testbed

import (
	"errors"
	"fmt"
	"imapgate/internal/testkit"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Timeout is the shortest time-out of a wait in tests. It is long because a race build
// is slow on a busy machine, and only a failing test reaches it.
const Timeout = 30 * time.Second

const (
	// startTimeout bounds the time from a server's start to its first answer.
	startTimeout = 2 * Timeout
	// stopTimeout bounds the time from SIGTERM to a server's exit.
	stopTimeout = 5 * time.Second
	// pollInterval is the pause between two checks of a condition.
	pollInterval = 5 * time.Millisecond
	// maxOutput bounds the part of a process's output that is shown: the newest bytes.
	maxOutput = 256 << 10
	// maxPortAttempts bounds the starts of a server whose ports are taken.
	maxPortAttempts = 8
)

// ErrPortTaken is returned by a start function when another process took a port first.
// OnFreePorts then tries again with other ports.
var ErrPortTaken = errors.New("another process has taken the port")

// Process is a running command in a process group of its own.
type Process struct {
	// Set once.
	cmd  *exec.Cmd
	done chan struct{} // closed by wait, after err is set
	out  *os.File      // a file, because Wait would wait for every child that holds a pipe
	kill sync.Once     // a second signal could reach another process with the same id

	// Owned by wait until done is closed.
	err error
}

// FindProgram returns the path of an executable. If there is none it fails the test and
// names the package to install.
func FindProgram(t testing.TB, name, debianPackage string) string {
	t.Helper()
	// Daemons are in /usr/sbin, which may be missing in an ordinary user's PATH.
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("this test needs the program %s: install it with apt-get install %s", name, debianPackage)
	return ""
}

// Start runs a command and kills its process group when the test ends. If the test has
// failed, it logs the command's output.
func Start(t testing.TB, path string, args ...string) (*Process, error) {
	t.Helper()
	return startCommand(t, exec.Command(path, args...))
}

// startCommand is Start for an exec.Cmd.
func startCommand(t testing.TB, cmd *exec.Cmd) (*Process, error) {
	t.Helper()
	path := cmd.Path
	out, err := os.Create(filepath.Join(makeDir(t, "out"), "output"))
	if err != nil {
		return nil, fmt.Errorf("make a file for the output of %s: %w", path, err)
	}
	p := &Process{cmd: cmd, done: make(chan struct{}), out: out}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	setProcessGroup(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", path, err), out.Close())
	}
	go p.wait()
	t.Cleanup(func() {
		p.Kill() // fast, and its files are removed anyway
		if t.Failed() {
			t.Logf("output of %s (process %d):\n%s", path, p.PID(), p.Output())
		}
		_ = out.Close()
	})
	return p, nil
}

// wait reaps the process and returns when it has exited.
func (p *Process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID returns the process id, which is also the id of its group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has exited.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err waits for the process to exit and returns nil for exit status 0.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Output returns the process's output so far: its last maxOutput bytes.
func (p *Process) Output() string {
	info, err := p.out.Stat()
	if err != nil {
		return fmt.Sprintf("(the output cannot be read: %v)", err)
	}
	end := make([]byte, min(info.Size(), maxOutput))
	n, err := p.out.ReadAt(end, info.Size()-int64(len(end)))
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Sprintf("(the output cannot be read: %v)", err)
	}
	return string(end[:n])
}

// Signal sends a signal to the process alone.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Stop sends SIGTERM, waits up to stopTimeout and kills the process group. It may be
// called again.
func (p *Process) Stop() {
	select {
	case <-p.done:
	default:
		_ = p.Signal(syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(stopTimeout):
		}
	}
	p.Kill()
}

// Kill ends the process group at once, as a power failure would, and waits. It may be
// called again.
func (p *Process) Kill() {
	// The group outlives its leader while a child runs, so the signal is sent even if the
	// leader was reaped. The kernel does not reuse the id before the group is empty.
	p.kill.Do(func() { _ = syscall.Kill(-p.PID(), syscall.SIGKILL) })
	<-p.done
}

// WaitPort waits until address accepts connections. It returns an error if the process
// exits first or startTimeout passes.
func (p *Process) WaitPort(address string) error {
	return p.WaitUntil("accept connections on "+address, func() bool {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// WaitUntil waits until ready returns true. It returns an error if the process exits
// first or startTimeout passes; what completes the error "the process did not …".
func (p *Process) WaitUntil(what string, ready func() bool) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	timeout := time.After(startTimeout)
	for !ready() {
		select {
		case <-tick.C:
		case <-p.done:
			return fmt.Errorf("%s ended (%w) and did not %s:\n%s", p.cmd.Path, describeExit(p.err), what, p.Output())
		case <-timeout:
			return fmt.Errorf("%s did not %s within %v:\n%s", p.cmd.Path, what, startTimeout, p.Output())
		}
	}
	return nil
}

// describeExit returns an error for every exit, also for status 0.
func describeExit(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// OnFreePorts calls start with n free loopback ports. While start returns ErrPortTaken,
// it tries other ports, maxPortAttempts times in total. Any other error fails the test.
func OnFreePorts(t testing.TB, n int, start func(ports []int) error) {
	t.Helper()
	var err error
	for range maxPortAttempts {
		if err = start(freePorts(t, n)); !errors.Is(err, ErrPortTaken) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// freePorts returns n different ports chosen by the kernel. Another process may take one
// before the caller uses it.
func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, 0, n)
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("ask for a free port: %v", err)
		}
		defer l.Close() // nothing was written
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// Loopback returns the address of a port on 127.0.0.1.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// makeDir creates a folder with a short name, because the path of a unix socket has at
// most 107 bytes and t.TempDir contains the name of the test.
func makeDir(t testing.TB, prefix string) string {
	t.Helper()
	return makeDirIn(t, "", prefix)
}

// makeDirIn is makeDir in parent, or in the system's folder for temporary files for "".
func makeDirIn(t testing.TB, parent, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		t.Fatalf("make a folder: %v", err)
	}
	t.Cleanup(func() {
		// A child that was just killed may still be writing a file.
		testkit.Eventually(t, "a server's folder to be removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}
