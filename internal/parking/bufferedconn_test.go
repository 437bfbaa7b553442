package parking

import (
	"bytes"
	"errors"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"

	"imapgate/internal/testbed"
)

// readBuffered returns the result of ReadBuffered, size bytes at a time.
func readBuffered(t testing.TB, c net.Conn, size int) string {
	t.Helper()
	var all []byte
	for p := make([]byte, size); ; {
		n, err := ReadBuffered(c, p)
		all = append(all, p[:n]...)
		if errors.Is(err, ErrWouldBlock) {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestSecondRecordIsReadFromBuffer(t *testing.T) {
	client, server := tlsPair(t)
	var twoRecords [gatherBuffer]byte
	under := bufferedConnOf(client)
	under.beginGather(&twoRecords)
	write(t, client, "a NOOP\r\n")
	write(t, client, "b NOOP\r\n")
	if _, err := under.endGather(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, SmallBuffer)
	if n, err := server.Read(p); string(p[:n]) != "a NOOP\r\n" || err != nil {
		t.Fatalf("read %q, %v", p[:n], err)
	}
	write(t, client, "c NOOP\r\n") // a segment of its own
	s, w := newPoller(t), newTestWaker()
	arm(t, s, w, server)
	w.expectWake(t) // the kernel has it
	if got := readBuffered(t, server, SmallBuffer); got != "b NOOP\r\n" {
		t.Errorf("read %q", got)
	}
	expectRead(t, server, "c NOOP\r\n")
	if got := readBuffered(t, server, SmallBuffer); got != "" {
		t.Errorf("read %q", got)
	}
}

func TestReadBufferedReadsRestOfRecord(t *testing.T) {
	client, server := tlsPair(t)
	text := strings.Repeat("0123456789", MaxRecord/10)
	write(t, client, text)
	expectRead(t, server, text[:100])
	if got := readBuffered(t, server, 1000); got != text[100:] {
		t.Errorf("read %d bytes, want %d", len(got), len(text)-100)
	}
}

func TestPartialRecordWouldBlock(t *testing.T) {
	client, accepted := testbed.TCPPair(t)
	under := &holdingConn{Conn: client}
	sender, server := handshake(t, under, NewBufferedConn(accepted.(*net.TCPConn)))
	NewBufferPool().ReadAhead(server)
	under.hold = true
	write(t, sender, "a NOOP\r\n")
	whole := len(under.held)
	write(t, sender, "b NOOP\r\n")
	half := whole + whole/2
	if _, err := client.Write(under.held[:half]); err != nil {
		t.Fatal(err)
	}
	expectRead(t, server, "a NOOP\r\n")
	for range 2 {
		if got := readBuffered(t, server, SmallBuffer); got != "" {
			t.Errorf("read %q", got)
		}
		ReleaseBuffers(server) // frees nothing unread
	}
	if _, err := client.Write(under.held[half:]); err != nil {
		t.Fatal(err)
	}
	expectRead(t, server, "b NOOP\r\n")
}

// holdingConn keeps the bytes written to it.
type holdingConn struct {
	net.Conn
	hold bool
	held []byte
}

func (h *holdingConn) Write(p []byte) (int, error) {
	if !h.hold {
		return h.Conn.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

func TestReadBufferedOfPlainConnWouldBlock(t *testing.T) {
	near, far := testbed.TCPPair(t)
	write(t, far, "x")
	s, w := newPoller(t), newTestWaker()
	arm(t, s, w, near)
	w.expectWake(t)
	n, err := ReadBuffered(near, make([]byte, 1))
	var timeout net.Error
	if n != 0 || !errors.Is(err, ErrWouldBlock) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read %d, %v", n, err)
	}
	expectRead(t, near, "x")
}

func TestLargeWritesArriveUnchanged(t *testing.T) {
	client, server := tlsPair(t)
	b := NewBufferPool()
	text := strings.Repeat("0123456789abcdef", LargeBuffer/16)
	for _, size := range []int{1, MaxRecord, MaxRecord + 1, LargeBuffer} {
		sent := make(chan error, 1)
		go func() { sent <- b.Write(client, []byte(text[:size])) }()
		expectRead(t, server, text[:size])
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func TestBuffersAreReturnedCleared(t *testing.T) {
	client, server := tlsPair(t)
	b := NewBufferPool()
	b.ReadAhead(server)
	ahead := bufferedConnOf(server).aheadBuf
	var gathered [gatherBuffer]byte
	bufferedConnOf(client).beginGather(&gathered)
	write(t, client, strings.Repeat("x", 1000))
	if _, err := bufferedConnOf(client).endGather(); err != nil {
		t.Fatal(err)
	}
	expectRead(t, server, strings.Repeat("x", 1000))
	if bytes.Count(ahead[:], []byte{0}) == len(ahead) {
		t.Fatal("nothing was read ahead")
	}
	ReleaseBuffers(server)
	for name, buf := range map[string][]byte{"ahead": ahead[:], "gathered": gathered[:]} {
		if bytes.Count(buf, []byte{0}) != len(buf) {
			t.Errorf("%s comes back with bytes in it", name)
		}
	}
}

func TestReleaseBuffersFreesCryptoTLSBuffers(t *testing.T) {
	client, server := tlsPair(t)
	mail := strings.Repeat("x", 1<<20)
	b := NewBufferPool()
	b.ReadAhead(server)
	go func() { _, _ = io.WriteString(client, mail) }()
	expectRead(t, server, mail)
	ReleaseBuffers(server)
	conn := reflect.ValueOf(server).Elem()
	for _, name := range []string{"rawInput", "hand"} {
		buf := conn.FieldByName(name).FieldByName("buf")
		if !buf.IsValid() || buf.Cap() != 0 {
			t.Errorf("crypto/tls.Conn.%s is not as ReleaseBuffers expects, or holds a buffer: %v", name, buf)
		}
	}
	if bufferedConnOf(server).aheadBuf != nil {
		t.Error("the BufferedConn still reads ahead")
	}
	write(t, client, "still here")
	expectRead(t, server, "still here")
}

// Unread bytes after a PROXY header are part of that header's buffer.
func TestReleaseBuffersFreesUnreadBytes(t *testing.T) {
	client, accepted := testbed.TCPPair(t)
	under := NewBufferedConn(accepted.(*net.TCPConn))
	under.Unread(make([]byte, 0, 4<<10))
	_, server := handshake(t, client, under)
	ReleaseBuffers(server)
	if cap(under.readBuf) > 0 {
		t.Errorf("%d bytes are kept", cap(under.readBuf))
	}
}

// A buffer with bytes that crypto/tls has not returned yet must not be freed.
func TestReleaseBuffersLosesNoBytes(t *testing.T) {
	client, server := tlsPair(t)
	NewBufferPool().ReadAhead(server)
	var records [gatherBuffer]byte
	bufferedConnOf(client).beginGather(&records)
	for range 100 {
		write(t, client, "a NOOP\r\n")
	}
	if _, err := bufferedConnOf(client).endGather(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		expectRead(t, server, "a NO")
		ReleaseBuffers(server)
		expectRead(t, server, "OP\r\n")
		ReleaseBuffers(server)
	}
}
