//go:build unix

// Package testbed starts the real servers that tests talk to: Dovecot, Cyrus and Courier
// as mail backends, Redis as the routing store and nginx as a mail proxy to compare with.
// Each one listens on 127.0.0.1 on ports the kernel chose, keeps its files in a
// folder of its own and is gone, with all its children, when the test that
// started it ends.
//
// It is for tests only and knows nothing of the gateway. The test owns every
// server it started; a server owns its process group and its folder.
package testbed

import (
	"errors"
	"fmt"
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

// Timeout is the least limit of a wait in tests. It is reached only where what is
// waited for never comes: a race build on a busy machine is slow.
const Timeout = 30 * time.Second

const (
	// startTimeout is how long a server may take until it answers.
	startTimeout = 2 * Timeout
	// stopTimeout is how long a server may take to obey SIGTERM.
	stopTimeout = 5 * time.Second
	// pollInterval is the pause between two looks at something a server does.
	pollInterval = 5 * time.Millisecond
	// maxOutput bounds what is shown of a process's output; the newest is shown.
	maxOutput = 256 << 10
	// maxPortAttempts is how often a server is started again after losing its port.
	maxPortAttempts = 8
)

// ErrPortTaken is returned by a start function when somebody else got a port
// first; OnFreePorts then tries again with others.
var ErrPortTaken = errors.New("the port was taken by somebody else")

// Process is a running command in a process group of its own.
type Process struct {
	// Set once.
	cmd  *exec.Cmd
	done chan struct{} // closed by wait, after err is set
	out  *os.File      // a file, not a pipe: Wait would wait for every child that holds a pipe
	kill sync.Once     // a second signal could reach a stranger with the same number

	// Owned by wait until done is closed.
	err error
}

// FindProgram finds an executable or fails the test with the package to install.
func FindProgram(t testing.TB, name, debianPackage string) string {
	t.Helper()
	// Daemons are in /usr/sbin, which an ordinary user's PATH may lack.
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	t.Fatalf("this test needs the program %s: install it with apt-get install %s", name, debianPackage)
	return ""
}

// Start runs a command and stops its whole process group when the test ends.
// When the test failed, what the command printed is logged.
func Start(t testing.TB, path string, args ...string) (*Process, error) {
	t.Helper()
	return startCommand(t, exec.Command(path, args...))
}

// startCommand is Start for a command that is made already.
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
		p.Kill() // quick, and what it would still tidy up is removed anyway
		if t.Failed() {
			t.Logf("output of %s (process %d):\n%s", path, p.PID(), p.Output())
		}
		_ = out.Close()
	})
	return p, nil
}

// wait reaps the process; it ends when the process does.
func (p *Process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID is the process id, which is also the id of its group.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how the process ended: nil for exit status 0. It waits for the end.
func (p *Process) Err() error {
	<-p.done
	return p.err
}

// Output is the end of what the process has printed so far.
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

// Stop asks the process to end, then ends its whole group, and waits. It may be
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

// Kill ends the whole group at once, as a power cut would, and waits. It may be
// called again.
func (p *Process) Kill() {
	// The group outlives its leader while a child lives, so the signal is sent
	// even after the leader was reaped: the kernel does not give its number to a
	// new process before the group is empty.
	p.kill.Do(func() { _ = syscall.Kill(-p.PID(), syscall.SIGKILL) })
	<-p.done
}

// WaitPort waits until address accepts connections; it gives up when the process
// ends first or the time is over.
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

// WaitUntil waits until ready says yes; what completes the sentence "the process
// did not …". It gives up when the process ends first or the time is over.
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

// describeExit gives an exit with status 0 a text too.
func describeExit(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// OnFreePorts calls start with n loopback ports nobody listens on, and again with
// others as long as it answers ErrPortTaken. Any other error fails the test.
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

// freePorts asks the kernel for n different ports. All are held until all are
// known; between the return and their use somebody else may still take one.
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

// Loopback is the address of a port on this machine.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Eventually polls ok until it returns true, and fails the test after the limit, which is
// Patience at least; what says what was waited for. It must be called by the test's
// own goroutine.
func Eventually(t testing.TB, limit time.Duration, what string, condition func() bool) {
	t.Helper()
	limit = max(limit, Timeout)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	timeout := time.After(limit)
	for !condition() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("waited %v for this, in vain: %s", limit, what)
		}
	}
}

// makeDir makes a folder with a short name: the path of a unix socket has at most
// 107 bytes, and t.TempDir spells out the whole name of the test.
func makeDir(t testing.TB, prefix string) string {
	t.Helper()
	return makeDirIn(t, "", prefix)
}

// makeDirIn is folder within another folder than the system's for temporary files.
func makeDirIn(t testing.TB, parent, prefix string) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, prefix)
	if err != nil {
		t.Fatalf("make a folder: %v", err)
	}
	t.Cleanup(func() {
		// A child killed a moment ago may still be writing its last file.
		Eventually(t, stopTimeout, "a server's folder to be removed", func() bool { return os.RemoveAll(dir) == nil })
	})
	return dir
}
