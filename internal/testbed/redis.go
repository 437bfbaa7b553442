//go:build unix

package testbed

import (
	"fmt"
	"imapgate/internal/testkit"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Redis is a running redis-server. Its keys survive Kill and Restart, because it keeps
// an append-only file.
type Redis struct {
	// Set once.
	Address string
	t       testing.TB
	sysroot sysroot
	program string
	dir     string
	args    []string // without port and folder
	port    int

	// Guarded by mu.
	mu       sync.Mutex
	process  *Process
	reserved *reservedPort // its port from Kill to the end of Restart, else nil
}

// StartRedis starts a server and stops it when the test ends. The settings are arguments
// of redis-server.
func StartRedis(t testing.TB, settings ...string) *Redis {
	t.Helper()
	r := newRedis(t, settings...)
	OnFreePorts(t, 1, func(ports []int) error { return r.listen(ports[0]) })
	return r
}

// StartRedisTLS starts a server that also listens with TLS, on the returned address, with
// a certificate for localhost and 127.0.0.1. Clients need no certificate unless settings
// require one.
func StartRedisTLS(t testing.TB, ca *CA, settings ...string) (r *Redis, address string) {
	t.Helper()
	cert, key := ca.Issue(t, "localhost", "127.0.0.1")
	r = newRedis(t)
	cert, key = r.sysroot.copyIn(t, cert, r.dir, "cert.pem"), r.sysroot.copyIn(t, key, r.dir, "key.pem")
	caFile := r.sysroot.copyIn(t, ca.File, r.dir, "ca.pem")
	OnFreePorts(t, 2, func(ports []int) error {
		address = Loopback(ports[1])
		r.args = append([]string{
			"--tls-port", strconv.Itoa(ports[1]), "--tls-auth-clients", "no",
			"--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", caFile,
		}, settings...)
		return r.listen(ports[0])
	})
	return r, address
}

func newRedis(t testing.TB, settings ...string) *Redis {
	t.Helper()
	p, program := locateProgram(t, "redis-server", "redis-server")
	return &Redis{t: t, sysroot: p, program: program, dir: p.makeDir(t, "rd"), args: settings}
}

// listen starts the server on a port, which it keeps across restarts.
func (r *Redis) listen(port int) error {
	r.port, r.Address = port, Loopback(port)
	return r.start()
}

// start runs the server and returns when it serves.
func (r *Redis) start() error {
	args := append([]string{
		"--bind", "127.0.0.1", "--port", strconv.Itoa(r.port), "--dir", r.sysroot.innerPath(r.dir),
		// No fsync: while one runs on a busy disk, Redis buffers writes in memory, and
		// Kill would lose them.
		"--save", "", "--appendonly", "yes", "--appendfsync", "no",
	}, r.args...)
	p, err := r.sysroot.start(r.t, r.program, args...)
	if err != nil {
		return err
	}
	// The server's own output, because another process could answer on the port.
	err = p.WaitUntil("get ready", func() bool { return strings.Contains(p.Output(), "Ready to accept connections") })
	if err != nil {
		p.Kill()
		if strings.Contains(p.Output(), "Address already in use") {
			return ErrPortTaken
		}
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.process = p
	return nil
}

// Dir returns the folder the server writes to.
func (r *Redis) Dir() string { return r.dir }

// TryCLI runs redis-cli against this server and returns its output. An error reply of
// Redis is returned as an error.
func (r *Redis) TryCLI(args ...string) (string, error) {
	cmd := Command(r.t, "redis-cli", "redis-tools", append([]string{"-e", "-h", "127.0.0.1", "-p", strconv.Itoa(r.port)}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("redis-cli %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// CLI is TryCLI that fails the test on an error.
func (r *Redis) CLI(args ...string) string {
	r.t.Helper()
	out, err := r.TryCLI(args...)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// Freeze suspends the server with SIGSTOP: connections stay open without answers, as
// when a host hangs. The end of the test thaws it.
func (r *Redis) Freeze() {
	r.t.Helper()
	if err := r.currentProcess().Signal(syscall.SIGSTOP); err != nil {
		r.t.Fatalf("freeze Redis: %v", err)
	}
	r.t.Cleanup(r.Thaw) // a stopped process does not handle SIGTERM
}

// Thaw resumes a frozen server.
func (r *Redis) Thaw() { _ = r.currentProcess().Signal(syscall.SIGCONT) }

// Kill ends the server at once, as a power failure would. Its port is kept.
func (r *Redis) Kill() {
	r.t.Helper()
	r.currentProcess().Kill()
	r.reservePort()
}

// reservePort keeps the port of the ended server until releasePort or the end of the test.
func (r *Redis) reservePort() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reserved == nil {
		r.reserved = reservePort(r.t, r.port)
		r.t.Cleanup(r.releasePort)
	}
}

func (r *Redis) releasePort() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reserved.release()
	r.reserved = nil
}

// Restart stops the server if it runs and starts it on the same port with the
// same keys.
func (r *Redis) Restart() {
	r.t.Helper()
	r.Thaw()
	r.currentProcess().Stop()
	r.reservePort()
	defer r.releasePort()
	var err error
	testkit.Eventually(r.t, "Redis to get its port again", func() bool {
		err = r.start()
		return err != ErrPortTaken
	})
	if err != nil {
		r.t.Fatalf("restart Redis: %v", err)
	}
}

// RestartEmpty kills the server and starts it on the same port without its keys, as if
// its volume were lost.
func (r *Redis) RestartEmpty() {
	r.t.Helper()
	r.Kill()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatalf("lose the keys of Redis: %v", err)
	}
	for _, f := range entries {
		if err := os.RemoveAll(filepath.Join(r.dir, f.Name())); err != nil {
			r.t.Fatalf("lose the keys of Redis: %v", err)
		}
	}
	r.Restart()
}

func (r *Redis) currentProcess() *Process {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.process
}
