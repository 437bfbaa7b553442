//go:build unix

package testbed

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// heldPort is a port that is bound and not listened on: those who connect are
// refused, as when nobody has it, and the kernel gives it to no connection as its
// own. A server that sets SO_REUSEADDR, as Redis and Dovecot do, still gets it.
type heldPort struct{ fd int }

// holdPort keeps the port of a server that has ended, until it is released. On a
// busy machine somebody's connection would otherwise soon have it as its own end.
func holdPort(t testing.TB, port int) *heldPort {
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
	h := &heldPort{fd}
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatalf("share a port: %v", err)
	}
	// A server's last process may still be about to end. Where somebody was quicker
	// there is nothing to hold, and who wants to listen there has to wait.
	for end := time.Now().Add(time.Second); time.Now().Before(end); <-time.After(pollTime) {
		if syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}) == nil {
			break
		}
	}
	return h
}

// release gives the port up. It may be called on nil.
func (h *heldPort) release() {
	if h != nil {
		_ = syscall.Close(h.fd) // nothing was written
	}
}

// KeptPorts are the ports of a server of this machine while it is down.
type KeptPorts struct {
	// Set once.
	Numbers []int

	// Guarded by mu.
	mu   sync.Mutex
	held []*heldPort // nil: the server has them
}

// Hold keeps the ports until Release or the end of the test. The server must have
// ended, or be ending.
func (k *KeptPorts) Hold(t testing.TB) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held != nil {
		return
	}
	for _, port := range k.Numbers {
		k.held = append(k.held, holdPort(t, port))
	}
	t.Cleanup(k.Release)
}

// Release gives the ports up, when the server has them again.
func (k *KeptPorts) Release() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.held {
		h.release()
	}
	k.held = nil
}
