//go:build unix

package wire

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
)

// newConnPair returns a Conn and the connection of its peer.
func newConnPair(t *testing.T, withTLS bool) (*Conn, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	local, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if withTLS {
		ca := testbed.NewCA(t)
		cert, err := tls.LoadX509KeyPair(ca.Issue(t, "mail.test"))
		if err != nil {
			t.Fatal(err)
		}
		server := tls.Server(peer, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
		peer = server
		client := tls.Client(parking.NewBufferedConn(local.(*net.TCPConn)), ca.ClientTLS("mail.test"))
		local = client
		handshakeErr := make(chan error, 1)
		go func() { handshakeErr <- server.Handshake() }()
		if err := errors.Join(client.Handshake(), <-handshakeErr); err != nil {
			t.Fatal(err)
		}
	}
	c := new(Conn)
	c.Open(local, nil, imap.Responses, &Resources{Buffers: parking.NewBufferPool(), Clock: relay.NewClock()})
	t.Cleanup(func() { _ = c.Close(); _ = peer.Close() })
	return c, peer
}

// runWithAndWithoutTLS runs a test once with TLS and once without.
func runWithAndWithoutTLS(t *testing.T, test func(t *testing.T, withTLS bool)) {
	for name, withTLS := range map[string]bool{"plain": false, "tls": true} {
		t.Run(name, func(t *testing.T) { test(t, withTLS) })
	}
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// readLine reads one line like a session.
func readLine(t *testing.T, c *Conn) string {
	t.Helper()
	for {
		s, ok, err := c.NextBuffered()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return string(s.Bytes)
		}
		if err := c.ReadMore(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestHasUnreadChecksEveryBuffer(t *testing.T) {
	runWithAndWithoutTLS(t, func(t *testing.T, withTLS bool) {
		c, peer := newConnPair(t, withTLS)
		if c.HasUnread() {
			t.Fatal("a new connection has unread bytes")
		}
		send(t, peer, "* OK 1\r\n")
		testkit.Eventually(t, "the kernel", c.HasUnread)
		testkit.Eventually(t, "the kernel", c.IsReadable)
		send(t, peer, "* OK 2\r\n")
		if readLine(t, c) != "* OK 1\r\n" {
			t.Error("not the first line")
		}
		testkit.Eventually(t, "the second", c.HasUnread)
		if readLine(t, c) != "* OK 2\r\n" || c.HasUnread() || c.IsReadable() {
			t.Error("unread bytes remain")
		}
		c.ReleaseBuffers()
		if c.HasUnread() || c.BufferSize() != 0 && !withTLS {
			t.Errorf("bytes are unread or buffered: %d", c.BufferSize())
		}
		_ = peer.Close()
		testkit.Eventually(t, "the end", c.HasUnread)
	})
}

func TestHasUnreadFindsBufferedTLSRecords(t *testing.T) {
	c, peer := newConnPair(t, true)
	c.resources.Buffers.ReadAhead(c.conn) // as after a large message
	send(t, peer, "* OK 1\r\n")
	send(t, peer, "* OK 2\r\n")
	send(t, peer, "* OK 3\r\n")
	testkit.Eventually(t, "the kernel", func() bool { return c.IsReadable() })
	for i := range 3 {
		if got := readLine(t, c); !strings.HasPrefix(got, "* OK ") {
			t.Fatalf("%d: %q", i, got)
		}
		if i < 2 {
			testkit.Eventually(t, "the next record", c.HasUnread)
		}
	}
	if in, _ := c.ByteCounts(); in != 24 || c.HasUnread() {
		t.Errorf("%d bytes were counted", in)
	}
}

func TestInterruptedWaitCanBeRepeated(t *testing.T) {
	runWithAndWithoutTLS(t, func(t *testing.T, withTLS bool) {
		c, peer := newConnPair(t, withTLS)
		ended := make(chan error, 1)
		go func() { ended <- c.AwaitInput() }()
		testkit.Eventually(t, "the wait", func() bool { return c.activity.Load() == waitingForInput })
		began := c.activitySince.Load()
		c.OnTick(began+1, relay.Tick, relay.Tick)
		if c.activity.Load() != waitingForInput {
			t.Fatal("interrupted too early")
		}
		c.OnTick(began+2, relay.Tick, relay.Tick)
		if err := <-ended; err != ErrIdle {
			t.Fatal(err)
		}
		send(t, peer, "* OK\r\n")
		if err := c.AwaitInput(); err != nil {
			t.Fatal(err)
		}
		if readLine(t, c) != "* OK\r\n" || c.activity.Load() != noActivity {
			t.Error("the line is lost")
		}
		c.InterruptWait() // no effect without a wait
		send(t, peer, "* OK\r\n")
		if err := c.AwaitInput(); err != nil {
			t.Error(err)
		}
	})
}

func TestPeerStallingMidResponseIsAborted(t *testing.T) {
	runWithAndWithoutTLS(t, func(t *testing.T, withTLS bool) {
		c, peer := newConnPair(t, withTLS)
		ended := make(chan error, 1)
		go func() { ended <- c.ReadMore() }()
		testkit.Eventually(t, "the read", func() bool { return c.activity.Load() == readingMore })
		c.OnTick(c.activitySince.Load()+3, relay.Tick, 2*relay.Tick)
		if err := <-ended; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		if _, err := peer.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still open")
		}
	})
}

func TestPeerThatReadsNothingIsAborted(t *testing.T) {
	c, _ := newConnPair(t, false)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 64<<20))
		ended <- err
	}()
	testkit.Eventually(t, "the write", func() bool { return c.activity.Load() == writingBytes })
	testkit.Eventually(t, "the socket to be full", func() bool { return !parking.IsWritable(c.conn) })
	c.OnTick(c.activitySince.Load()+3, relay.Tick, 2*relay.Tick)
	if err := <-ended; !errors.Is(err, ErrStalled) {
		t.Error(err)
	}
}

func TestLargeMessageIsReadWholeAndBuffersAreReleased(t *testing.T) {
	runWithAndWithoutTLS(t, func(t *testing.T, withTLS bool) {
		c, peer := newConnPair(t, withTLS)
		mail := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		sent := make(chan error, 1)
		go func() {
			_, err := peer.Write(append([]byte("* 1 FETCH (BODY[] {1048576}\r\n"), append(mail, ")\r\n"...)...))
			sent <- err
		}()
		var got []byte
		for end := false; !end; {
			s, ok, err := c.NextBuffered()
			if err == nil && !ok {
				err = c.ReadMore()
			}
			if err != nil {
				t.Fatal(err)
			}
			got, end = append(got, s.Bytes...), ok && s.End
		}
		if err := <-sent; err != nil || !bytes.Contains(got, mail) || c.BufferSize() != parking.LargeBuffer {
			t.Errorf("%v, %d bytes, a buffer of %d", err, len(got), c.BufferSize())
		}
		if in, _ := c.ByteCounts(); in != int64(len(got)) {
			t.Errorf("%d bytes were counted of %d", in, len(got))
		}
		if c.ReleaseBuffers(); c.BufferSize() != 0 {
			t.Error("the buffer was not released")
		}
	})
}

func TestDetachReturnsBufferedBytes(t *testing.T) {
	runWithAndWithoutTLS(t, func(t *testing.T, withTLS bool) {
		w, peer := newConnPair(t, withTLS)
		send(t, peer, "* OK 1\r\n* OK 2\r\n")
		if readLine(t, w) != "* OK 1\r\n" {
			t.Fatal("not the first line")
		}
		c, rest := w.Detach()
		if c != w.NetConn() || string(rest) != "* OK 2\r\n" {
			t.Errorf("the rest is %q", rest)
		}
	})
}

func TestPrereadBytesComeFirst(t *testing.T) {
	local, peer := net.Pipe()
	defer func() { _ = local.Close() }()
	c := new(Conn)
	c.Open(local, []byte("* OK 1\r\n* O"), imap.Responses, &Resources{Buffers: parking.NewBufferPool(), Clock: relay.NewClock()})
	go func() { _, _ = peer.Write([]byte("K 2\r\n")) }()
	if readLine(t, c) != "* OK 1\r\n" || readLine(t, c) != "* OK 2\r\n" {
		t.Error("the lines are not in order")
	}
}

// A command line that fills the buffer to its last byte may end in LF, but not if more bytes
// arrived with it.
func TestLineThatFillsTheBufferMayEndInBareLF(t *testing.T) {
	runWithAndWithoutTLS(t, func(t *testing.T, withTLS bool) {
		for _, size := range []int{parking.SmallBuffer, parking.LargeBuffer} {
			for n := size - 1; n <= size+1; n++ {
				for _, following := range []string{"", "b NOOP\r\n"} {
					_, err := readLineEndingInLF(t, withTLS, n, following)
					if following == "" && err != nil {
						t.Errorf("%d bytes: %v", n, err)
					} else if following != "" && withTLS && size == parking.SmallBuffer && !errors.Is(err, imap.ErrLineEnding) { // one TLS record has all bytes
						t.Errorf("%d bytes and more: %v", n, err)
					}
				}
			}
		}
	})
}

// readLineEndingInLF reads a line of n bytes that ends in LF and is followed by following.
func readLineEndingInLF(t *testing.T, withTLS bool, n int, following string) (line []byte, err error) {
	t.Helper()
	closed, peer := newConnPair(t, withTLS)
	c := new(Conn)
	c.Open(closed.NetConn(), nil, imap.Commands, closed.resources)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(peer, strings.Repeat("x", n-1)+"\n"+following)
		sent <- err
	}()
	defer func() {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}()
	for {
		s, ok, err := c.NextBuffered()
		switch line = append(line, s.Bytes...); {
		case err != nil:
			return line, err
		case !ok:
			if err := c.ReadMore(); err != nil {
				return line, err
			}
		case s.Kind == imap.LineEnd && len(line) != n+1:
			return line, errors.New("a line of another length")
		case s.Kind == imap.LineEnd:
			return line, nil
		}
	}
}
