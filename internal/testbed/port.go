//go:build unix

package testbed

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// reservedPort is a port that is bound but has no listener. Connections to it are
// refused, and the kernel does not choose it as the local port of a connection. A server
// that sets SO_REUSEADDR, as Redis and Dovecot do, can still listen on it.
type reservedPort struct{ fd int }

// reservePort keeps the port of a server that has ended, until release. On a busy machine
// the kernel would otherwise soon use it as the local port of a connection.
func reservePort(t testing.TB, port int) *reservedPort {
	t.Helper()
	syscall.ForkLock.RLock() // so that no child inherits it
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatalf("make a socket: %v", os.NewSyscallError("socket", err))
	}
	h := &reservedPort{fd}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatalf("share a port: %v", err)
	}
	// The server's last process may not have exited yet. If another process has taken
	// the port, it is not reserved, and the server has to wait for it.
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); <-time.After(pollInterval) {
		if syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}) == nil {
			break
		}
	}
	return h
}

// release frees the port. It may be called on nil.
func (h *reservedPort) release() {
	if h != nil {
		_ = syscall.Close(h.fd) // nothing was written
	}
}

// ReservedPorts keeps the ports of a server on this machine while it is down.
type ReservedPorts struct {
	// Set once.
	Numbers []int

	// Guarded by mu.
	mu       sync.Mutex
	reserved []*reservedPort // nil while the server runs
}

// Reserve keeps the ports until Release or the end of the test. The server must have
// exited or be exiting.
func (k *ReservedPorts) Reserve(t testing.TB) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reserved != nil {
		return
	}
	for _, port := range k.Numbers {
		k.reserved = append(k.reserved, reservePort(t, port))
	}
	t.Cleanup(k.Release)
}

// Release frees the ports once the server listens on them again.
func (k *ReservedPorts) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.reserved {
		h.release()
	}
	k.reserved = nil
}
