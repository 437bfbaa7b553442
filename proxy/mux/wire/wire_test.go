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
	"imapgate/internal/quiet"
	"imapgate/internal/testbed"
)

// pair is a Wire and the connection to its peer.
func pair(t *testing.T, secure bool) (*Wire, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	near, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if secure {
		ca := testbed.NewCA(t)
		cert, err := tls.LoadX509KeyPair(ca.Issue(t, "mail.test"))
		if err != nil {
			t.Fatal(err)
		}
		server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true})
		far = server
		client := tls.Client(quiet.NewSocket(near.(*net.TCPConn)), ca.ClientTLS("mail.test"))
		near = client
		shaken := make(chan error, 1)
		go func() { shaken <- server.Handshake() }()
		if err := errors.Join(client.Handshake(), <-shaken); err != nil {
			t.Fatal(err)
		}
	}
	w := new(Wire)
	w.Open(near, nil, imap.Responses, &Shared{Buffers: quiet.NewBuffers(), Clock: new(Clock)})
	t.Cleanup(func() { _ = w.Close(); _ = far.Close() })
	return w, far
}

// each runs a test with TLS and without.
func each(t *testing.T, test func(t *testing.T, secure bool)) {
	for name, secure := range map[string]bool{"plain": false, "tls": true} {
		t.Run(name, func(t *testing.T) { test(t, secure) })
	}
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// line reads one line as a session does.
func line(t *testing.T, w *Wire) string {
	t.Helper()
	for {
		s, ok, err := w.Ready()
		if err != nil {
			t.Fatal(err)
		}
		if ok {
			return string(s.Bytes)
		}
		if err := w.More(); err != nil {
			t.Fatal(err)
		}
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	testbed.Within(t, testbed.Patience, what, ok)
}

func TestPendingFindsWhatNobodyHasReadWhereverItIs(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		w, far := pair(t, secure)
		if w.Pending() {
			t.Fatal("something is unread on a new connection")
		}
		say(t, far, "* OK 1\r\n")
		until(t, "the kernel", w.Pending)
		until(t, "the kernel", w.Stirs)
		say(t, far, "* OK 2\r\n")
		if line(t, w) != "* OK 1\r\n" {
			t.Error("not the first line")
		}
		until(t, "the second", w.Pending)
		if line(t, w) != "* OK 2\r\n" || w.Pending() || w.Stirs() {
			t.Error("something is unread")
		}
		w.Relax()
		if w.Pending() || w.Size() != 0 && !secure {
			t.Errorf("something is unread, or held: %d", w.Size())
		}
		_ = far.Close()
		until(t, "the end", w.Pending)
	})
}

func TestPendingFindsRecordsThatTLSHolds(t *testing.T) {
	w, far := pair(t, true)
	w.shared.Buffers.ReadAhead(w.conn) // as mail makes it do
	say(t, far, "* OK 1\r\n")
	say(t, far, "* OK 2\r\n")
	say(t, far, "* OK 3\r\n")
	until(t, "the kernel", func() bool { return w.Stirs() })
	for i := range 3 {
		if got := line(t, w); !strings.HasPrefix(got, "* OK ") {
			t.Fatalf("%d: %q", i, got)
		}
		if i < 2 {
			until(t, "the next record", w.Pending)
		}
	}
	if in, _ := w.Counts(); in != 24 || w.Pending() {
		t.Errorf("%d bytes were counted", in)
	}
}

func TestAWaitEndsWhenItIsAskedToAndGoesOnLater(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		w, far := pair(t, secure)
		ended := make(chan error, 1)
		go func() { ended <- w.Wait() }()
		until(t, "the wait", func() bool { return w.doing.Load() == waiting })
		w.Look(1, 1)
		w.shared.Clock.Tick()
		w.Look(1, 1)
		if w.doing.Load() != waiting {
			t.Fatal("asked too soon")
		}
		w.shared.Clock.Tick()
		w.Look(1, 1)
		if err := <-ended; err != ErrQuiet {
			t.Fatal(err)
		}
		say(t, far, "* OK\r\n")
		if err := w.Wait(); err != nil {
			t.Fatal(err)
		}
		if line(t, w) != "* OK\r\n" || w.doing.Load() != nothing {
			t.Error("the line is lost")
		}
		w.Interrupt() // nothing waits: nothing happens
		say(t, far, "* OK\r\n")
		if err := w.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestAPeerThatStallsInTheMiddleIsCutOff(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		w, far := pair(t, secure)
		ended := make(chan error, 1)
		go func() { ended <- w.More() }()
		until(t, "the read", func() bool { return w.doing.Load() == reading })
		for range 3 {
			w.shared.Clock.Tick()
		}
		w.Look(1, 2)
		if err := <-ended; !errors.Is(err, ErrStalled) {
			t.Error(err)
		}
		if _, err := far.Read(make([]byte, 1)); err == nil {
			t.Error("the connection is still there")
		}
	})
}

func TestAPeerThatTakesNothingIsCutOff(t *testing.T) {
	w, _ := pair(t, false)
	ended := make(chan error, 1)
	go func() {
		_, err := w.Write(make([]byte, 64<<20))
		ended <- err
	}()
	until(t, "the write", func() bool { return w.doing.Load() == writing })
	for range 3 {
		w.shared.Clock.Tick()
	}
	w.Look(1, 2)
	if err := <-ended; !errors.Is(err, ErrStalled) {
		t.Error(err)
	}
}

func TestMailGoesThroughWholeAndLeavesNoBuffer(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		w, far := pair(t, secure)
		mail := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
		sent := make(chan error, 1)
		go func() {
			_, err := far.Write(append([]byte("* 1 FETCH (BODY[] {1048576}\r\n"), append(mail, ")\r\n"...)...))
			sent <- err
		}()
		var got []byte
		for end := false; !end; {
			s, ok, err := w.Ready()
			if err == nil && !ok {
				err = w.More()
			}
			if err != nil {
				t.Fatal(err)
			}
			got, end = append(got, s.Bytes...), ok && s.End
		}
		if err := <-sent; err != nil || !bytes.Contains(got, mail) || w.Size() != quiet.LargeBuffer {
			t.Errorf("%v, %d bytes, a buffer of %d", err, len(got), w.Size())
		}
		if in, _ := w.Counts(); in != int64(len(got)) {
			t.Errorf("%d bytes were counted of %d", in, len(got))
		}
		if w.Relax(); w.Size() != 0 {
			t.Error("the buffer is still there")
		}
	})
}

func TestWhatWasReadTooFarGoesWithTheConnection(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		w, far := pair(t, secure)
		say(t, far, "* OK 1\r\n* OK 2\r\n")
		if line(t, w) != "* OK 1\r\n" {
			t.Fatal("not the first line")
		}
		c, rest := w.Detach()
		if c != w.Conn() || string(rest) != "* OK 2\r\n" {
			t.Errorf("the rest is %q", rest)
		}
	})
}

func TestWhatWasReadBeforeComesFirst(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	w := new(Wire)
	w.Open(near, []byte("* OK 1\r\n* O"), imap.Responses, &Shared{Buffers: quiet.NewBuffers(), Clock: new(Clock)})
	go func() { _, _ = far.Write([]byte("K 2\r\n")) }()
	if line(t, w) != "* OK 1\r\n" || line(t, w) != "* OK 2\r\n" {
		t.Error("the lines are torn")
	}
}

// A line of commands that fills the buffer to its last byte may end in LF; what came with
// it has it refused.
func TestALineThatFillsTheBufferMayEndInLF(t *testing.T) {
	each(t, func(t *testing.T, secure bool) {
		for _, size := range []int{quiet.SmallBuffer, quiet.LargeBuffer} {
			for n := size - 1; n <= size+1; n++ {
				for _, behind := range []string{"", "b NOOP\r\n"} {
					_, err := lineOf(t, secure, n, behind)
					if behind == "" && err != nil {
						t.Errorf("%d bytes: %v", n, err)
					} else if behind != "" && secure && size == quiet.SmallBuffer && !errors.Is(err, imap.ErrLineEnding) { // all is in one record
						t.Errorf("%d bytes and more: %v", n, err)
					}
				}
			}
		}
	})
}

// lineOf has a Wire read a line of n bytes that ends in LF, with more behind it.
func lineOf(t *testing.T, secure bool, n int, behind string) (line []byte, err error) {
	t.Helper()
	closed, far := pair(t, secure)
	w := new(Wire)
	w.Open(closed.Conn(), nil, imap.Commands, closed.shared)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(far, strings.Repeat("x", n-1)+"\n"+behind)
		sent <- err
	}()
	defer func() {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}()
	for {
		s, ok, err := w.Ready()
		switch line = append(line, s.Bytes...); {
		case err != nil:
			return line, err
		case !ok:
			if err := w.More(); err != nil {
				return line, err
			}
		case s.Kind == imap.Text && len(line) != n+1:
			return line, errors.New("a line of another length")
		case s.Kind == imap.Text:
			return line, nil
		}
	}
}
