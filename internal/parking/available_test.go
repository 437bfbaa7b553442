//go:build unix

package parking

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestReadAvailableReadsAllWithoutWaiting(t *testing.T) {
	near, far := testbed.TCPPair(t)
	secure, peer := tlsPair(t)
	unread := NewBufferedConn(near.(*net.TCPConn))
	for name, c := range map[string]struct{ near, far net.Conn }{
		"tcp": {near, far}, "socket": {unread, far}, "tls": {secure, peer},
	} {
		t.Run(name, func(t *testing.T) {
			var p [8]byte
			if n, err := ReadAvailable(c.near, p[:]); n != 0 || !errors.Is(err, ErrWouldBlock) {
				t.Fatalf("%d bytes of nothing, %v", n, err)
			}
			if _, err := io.WriteString(c.far, "abc"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c.near, p[:1]); err != nil {
				t.Fatal(err)
			}
			_ = c.near.SetReadDeadline(time.Unix(1, 0)) // another goroutine ends the wait
			n, err := ReadAvailable(c.near, p[:])
			_ = c.near.SetReadDeadline(time.Time{})
			if string(p[:n]) != "bc" || err != nil {
				t.Errorf("%q, %v", p[:n], err)
			}
		})
	}
	unread.Unread([]byte("de"))
	var p [8]byte
	if n, err := ReadAvailable(unread, p[:]); string(p[:n]) != "de" || err != nil {
		t.Errorf("%q, %v", p[:n], err)
	}
	_ = far.Close()
	testkit.Eventually(t, "the end", func() bool { _, err := ReadAvailable(near, p[:]); return err == io.EOF })
	if n, err := near.Read(p[:]); n != 0 || err != io.EOF {
		t.Errorf("after the end %d bytes, %v", n, err)
	}
	pipe, _ := net.Pipe()
	if n, err := ReadAvailable(pipe, p[:]); n != 0 || err != nil {
		t.Errorf("of a pipe %d bytes, %v", n, err)
	}
}
