//go:build unix

package testbed

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// reservedPort is a port that is bound and not listened on: those who connect are
// refused, as when nobody has it, and the kernel gives it to no connection as its
// own. A server that sets SO_REUSEADDR, as Redis and Dovecot do, still gets it.
type reservedPort struct{ fd int }

// reservePort keeps the port of a server that has ended, until it is released. On a
// busy machine somebody's connection would otherwise soon have it as its own end.
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
	// A server's last process may still be about to end. Where somebody was quicker
	// there is nothing to hold, and who wants to listen there has to wait.
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); <-time.After(pollInterval) {
		if syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}) == nil {
			break
		}
	}
	return h
}

// release gives the port up. It may be called on nil.
func (h *reservedPort) release() {
	if h != nil {
		_ = syscall.Close(h.fd) // nothing was written
	}
}

// ReservedPorts are the ports of a server of this machine while it is down.
type ReservedPorts struct {
	// Set once.
	Numbers []int

	// Guarded by mu.
	mu       sync.Mutex
	reserved []*reservedPort // nil: the server has them
}

// Reserve keeps the ports until Release or the end of the test. The server must have
// ended, or be ending.
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

// Release gives the ports up, when the server has them again.
func (k *ReservedPorts) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.reserved {
		h.release()
	}
	k.reserved = nil
}
