package upstream

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel detects a vanished backend by keepalive probes while nothing is sent, and by
// missing acknowledgements while something is.
func TestDeadBackendsAreDetectedByTheKernel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // not used
	r := newResolver(l.Addr().String(), systemDNS)
	nc, err := r.connect(t.Context(), time.Now().Add(time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close() // not used
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for option, want := range map[int]int{
		unix.TCP_USER_TIMEOUT: 120_000, unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 10, unix.TCP_KEEPCNT: 6,
	} {
		if err := raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, %v; want %d", option, got, err, want)
			}
		}); err != nil {
			t.Error(err)
		}
	}
}
