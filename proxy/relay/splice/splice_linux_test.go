package splice

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
)

// unpollableConn is a socket that the kernel has no room to watch.
type unpollableConn struct{ *net.TCPConn }

func (unpollableConn) SyscallConn() (syscall.RawConn, error) { return nil, syscall.ENOSPC }

func TestSessionContinuesWhenParkingFails(t *testing.T) {
	s := newSet(t, testConfig())
	client, front := testbed.TCPPair(t)
	back, backend := testbed.TCPPair(t)
	result := make(chan relay.Result, 1)
	session := s.sessions.Add(relay.Info{}, relay.OwnerFunc(func(r relay.Result) { result <- r }))
	r := s.Start(session, Side{Conn: unpollableConn{front.(*net.TCPConn)}}, Side{Conn: back}, func() {})
	// The other direction parks, and this one has had the time to try.
	tried := func() bool { return s.poller.Len() == 1 && r.up.state.Load() == stateStopped }
	for range 2 {
		testkit.Eventually(t, "the session to try", tried)
		write(t, client, "a NOOP\r\n")
		expectRead(t, backend, "a NOOP\r\n")
		write(t, backend, "a OK\r\n")
		expectRead(t, client, "a OK\r\n")
	}
	session.ShortenIdleTimeout(300*time.Millisecond, event.Idle)
	testkit.Eventually(t, "the end", func() bool { return len(result) == 1 })
	if got := <-result; got.Reason != event.Idle {
		t.Errorf("ended by %s (%v)", got.Reason, got.Err)
	}
}

// The number of sessions is bounded by their descriptors: two each.
func TestActiveSessionUsesOnlyItsSockets(t *testing.T) {
	cfg := testConfig()
	cfg.ParkAfter = time.Hour
	s := newSet(t, cfg)
	open := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	before, sessions := open(), 50
	for range sessions {
		b := newHarness(t, s, "plain-plain")
		write(t, b.client, "a NOOP\r\n")
		expectRead(t, b.backend, "a NOOP\r\n")
		write(t, b.backend, "a OK\r\n")
		expectRead(t, b.client, "a OK\r\n")
	}
	if n := open() - before; n > 4*sessions+10 { // the test holds both ends
		t.Errorf("%d sessions over %d sockets hold %d descriptors", sessions, 4*sessions, n)
	}
}

// Between plain sockets the kernel moves mail through a pipe that the runtime opens for
// splice(2). Over TLS there is no pipe.
func TestPlainSocketsUseKernelSplice(t *testing.T) {
	const sessions = 8
	cfg := testConfig()
	cfg.ParkAfter = time.Hour
	for _, kind := range []string{"plain-plain", "tls-plain"} {
		t.Run(kind, func(t *testing.T) {
			testkit.Eventually(t, "the pipes of other tests to be closed", func() bool {
				runtime.GC() // closes the pipes that the runtime has kept
				return countPipes(t) < sessions
			})
			s := newSet(t, cfg)
			for range sessions {
				b := newHarness(t, s, kind)
				_ = b.backend.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
				for mail := make([]byte, 1<<20); ; {
					if _, err := b.backend.Write(mail); err != nil {
						break // the client reads nothing
					}
				}
			}
			if n := countPipes(t); (n >= 2*sessions) != (kind == "plain-plain") {
				t.Errorf("%d sessions in the middle of mail hold %d ends of pipes", sessions, n)
			}
		})
	}
}

// countPipes returns how many pipe ends this process holds.
func countPipes(t *testing.T) (n int) {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, "pipe:") { // it may have been closed
			n++
		}
	}
	return n
}
