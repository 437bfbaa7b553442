package proxy

import (
	"imapgate/internal/testkit"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// A dead peer is detected by keepalive probes while nothing is sent, and by missing
// acknowledgements otherwise.
func TestKeepaliveIsSetOnClientSockets(t *testing.T) {
	l := &listener{ListenerSettings: ListenerSettings{Address: "127.0.0.1:0"}}
	testkit.NoError(t, (&Server{listeners: []*listener{l}}).Listen())
	defer l.tcp.Close()
	client, err := net.Dial("tcp", l.tcp.Addr().String())
	testkit.NoError(t, err)
	defer client.Close()
	tcp, err := l.tcp.AcceptTCP()
	testkit.NoError(t, err)
	defer tcp.Close()
	raw, err := tcp.SyscallConn()
	testkit.NoError(t, err)
	for option, want := range map[int]int{
		unix.TCP_USER_TIMEOUT: 120_000, unix.TCP_KEEPIDLE: 60, unix.TCP_KEEPINTVL: 10, unix.TCP_KEEPCNT: 6,
	} {
		testkit.NoError(t, raw.Control(func(fd uintptr) {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, %v; want %d", option, got, err, want)
			}
		}))
	}
	testkit.NoError(t, raw.Control(func(fd uintptr) {
		if on, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE); err != nil || on == 0 {
			t.Errorf("keepalive is %d, %v", on, err)
		}
	}))
}
