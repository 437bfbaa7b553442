package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// fullBacklog returns an address whose accept queue is full: the kernel drops each SYN, as a
// black hole would.
func fullBacklog(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprint("127.0.0.1:", name.(*unix.SockaddrInet4).Port)
	for range 16 { // the first is accepted; the others exceed the queue
		nc, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = nc.Close() })
	}
	t.Fatal("the backlog does not fill")
	return ""
}

func TestConnectTimesOutWhenSYNsAreDropped(t *testing.T) {
	results := make(chan event.ConnectResult, 1)
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: fullBacklog(t), TLS: event.NoTLS}, LoginSettings: LoginSettings{UpstreamConnectTimeout: 500 * time.Millisecond}}),
		Hooks{OnConnect: func(r event.ConnectResult) { results <- r }}, zap.NewNop())
	began := time.Now()
	conn, err := b.Login(context.Background(), testRequest(t))
	if took := time.Since(began); conn != nil || !errors.Is(err, ErrUnavailable) || took < 400*time.Millisecond {
		t.Errorf("%v, %v after %v", conn, err, took)
	}
	if r := <-results; r != event.ConnectTimeout {
		t.Error(r)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	b = New(testbed.WithDefaults(Config{Settings: Settings{Address: b.cfg().Address, TLS: event.NoTLS}, LoginSettings: LoginSettings{UpstreamConnectTimeout: time.Hour}}), Hooks{}, zap.NewNop())
	if _, err := b.Login(ctx, testRequest(t)); err == nil { // not after an hour
		t.Error("the client's own time does not count")
	}
}
