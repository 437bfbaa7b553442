package quiet

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

// now is what ReadNow has, size bytes at a time.
func now(t testing.TB, c net.Conn, size int) string {
	t.Helper()
	var all []byte
	for p := make([]byte, size); ; {
		n, err := ReadNow(c, p)
		all = append(all, p[:n]...)
		if errors.Is(err, ErrNothing) {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestASecondRecordInASegmentIsReadWithoutTheKernel(t *testing.T) {
	client, server := tlsPair(t)
	var twoRecords [gatherBuffer]byte
	under := underTLS(client)
	under.gather(&twoRecords)
	say(t, client, "a NOOP\r\n")
	say(t, client, "b NOOP\r\n")
	if _, err := under.flush(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, SmallBuffer)
	if n, err := server.Read(p); string(p[:n]) != "a NOOP\r\n" || err != nil {
		t.Fatalf("read %q, %v", p[:n], err)
	}
	say(t, client, "c NOOP\r\n") // a segment of its own
	s, w := newSet(t), newSleeper()
	wait(t, s, w, server)
	w.wakes(t) // the kernel has it
	if got := now(t, server, SmallBuffer); got != "b NOOP\r\n" {
		t.Errorf("read %q", got)
	}
	hear(t, server, "c NOOP\r\n")
	if got := now(t, server, SmallBuffer); got != "" {
		t.Errorf("read %q", got)
	}
}

func TestARecordLargerThanTheReadIsReadToItsEnd(t *testing.T) {
	client, server := tlsPair(t)
	text := strings.Repeat("0123456789", MaxRecord/10)
	say(t, client, text)
	hear(t, server, text[:100])
	if got := now(t, server, 1000); got != text[100:] {
		t.Errorf("read %d bytes, want %d", len(got), len(text)-100)
	}
}

func TestHalfARecordIsNothingYet(t *testing.T) {
	client, accepted := testbed.TCPPair(t)
	under := &holder{Conn: client}
	sender, server := handshake(t, under, NewSocket(accepted.(*net.TCPConn)))
	NewBuffers().ReadAhead(server)
	under.holds = true
	say(t, sender, "a NOOP\r\n")
	whole := len(under.held)
	say(t, sender, "b NOOP\r\n")
	half := whole + whole/2
	if _, err := client.Write(under.held[:half]); err != nil {
		t.Fatal(err)
	}
	hear(t, server, "a NOOP\r\n")
	for range 2 {
		if got := now(t, server, SmallBuffer); got != "" {
			t.Errorf("read %q", got)
		}
		Trim(server) // lets nothing go that has not been read
	}
	if _, err := client.Write(under.held[half:]); err != nil {
		t.Fatal(err)
	}
	hear(t, server, "b NOOP\r\n")
}

// holder keeps what is written to it.
type holder struct {
	net.Conn
	holds bool
	held  []byte
}

func (h *holder) Write(p []byte) (int, error) {
	if !h.holds {
		return h.Conn.Write(p)
	}
	h.held = append(h.held, p...)
	return len(p), nil
}

func TestAPlainSocketHasNothingWithoutTheKernel(t *testing.T) {
	near, far := testbed.TCPPair(t)
	say(t, far, "x")
	s, w := newSet(t), newSleeper()
	wait(t, s, w, near)
	w.wakes(t)
	n, err := ReadNow(near, make([]byte, 1))
	var timeout net.Error
	if n != 0 || !errors.Is(err, ErrNothing) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read %d, %v", n, err)
	}
	hear(t, near, "x")
}

func TestLargeWritesArriveAsTheyWere(t *testing.T) {
	client, server := tlsPair(t)
	b := NewBuffers()
	text := strings.Repeat("0123456789abcdef", LargeBuffer/16)
	for _, size := range []int{1, MaxRecord, MaxRecord + 1, LargeBuffer} {
		sent := make(chan error, 1)
		go func() { sent <- b.Write(client, []byte(text[:size])) }()
		hear(t, server, text[:size])
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	}
}

func TestBuffersComeBackCleared(t *testing.T) {
	client, server := tlsPair(t)
	b := NewBuffers()
	b.ReadAhead(server)
	ahead := underTLS(server).ahead
	var gathered [gatherBuffer]byte
	underTLS(client).gather(&gathered)
	say(t, client, strings.Repeat("x", 1000))
	if _, err := underTLS(client).flush(); err != nil {
		t.Fatal(err)
	}
	hear(t, server, strings.Repeat("x", 1000))
	if bytes.Count(ahead[:], []byte{0}) == len(ahead) {
		t.Fatal("nothing was read ahead")
	}
	Trim(server)
	for name, buf := range map[string][]byte{"ahead": ahead[:], "gathered": gathered[:]} {
		if bytes.Count(buf, []byte{0}) != len(buf) {
			t.Errorf("%s comes back with bytes in it", name)
		}
	}
}

func TestTrimLeavesNoBufferInCryptoTLS(t *testing.T) {
	client, server := tlsPair(t)
	mail := strings.Repeat("x", 1<<20)
	b := NewBuffers()
	b.ReadAhead(server)
	go func() { _, _ = io.WriteString(client, mail) }()
	hear(t, server, mail)
	Trim(server)
	conn := reflect.ValueOf(server).Elem()
	for _, name := range []string{"rawInput", "hand"} {
		buf := conn.FieldByName(name).FieldByName("buf")
		if !buf.IsValid() || buf.Cap() != 0 {
			t.Errorf("crypto/tls.Conn.%s is not what Trim knows, or holds a buffer: %v", name, buf)
		}
	}
	if underTLS(server).ahead != nil {
		t.Error("the Socket still reads ahead")
	}
	say(t, client, "still here")
	hear(t, server, "still here")
}

// What is put back behind a PROXY header lies in that header's buffer.
func TestTrimLeavesNothingOfWhatWasPutBack(t *testing.T) {
	client, accepted := testbed.TCPPair(t)
	under := NewSocket(accepted.(*net.TCPConn))
	under.Unread(make([]byte, 0, 4<<10))
	_, server := handshake(t, client, under)
	Trim(server)
	if cap(under.in) > 0 {
		t.Errorf("%d bytes are kept", cap(under.in))
	}
}

// Bytes that crypto/tls has not given away yet are no buffer to be taken back.
func TestTrimLosesNothing(t *testing.T) {
	client, server := tlsPair(t)
	NewBuffers().ReadAhead(server)
	var records [gatherBuffer]byte
	underTLS(client).gather(&records)
	for range 100 {
		say(t, client, "a NOOP\r\n")
	}
	if _, err := underTLS(client).flush(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		hear(t, server, "a NO")
		Trim(server)
		hear(t, server, "OP\r\n")
		Trim(server)
	}
}
