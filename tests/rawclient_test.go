package tests

import (
	"bufio"
	"errors"
	"imapgate/internal/testkit"
	"io"
	"strings"
	"testing"
)

// connectToScript returns a client that is connected to a script.
func connectToScript(t *testing.T, script func(*testkit.Conn)) *RawClient {
	t.Helper()
	c := testkit.Must(Connect(testkit.StartIMAP(t, script).Addr(), nil))(t)
	t.Cleanup(func() { _ = c.Close() })
	c.r = bufio.NewReaderSize(c.conn, 16) // so that lines do not fit
	return c
}

func TestRawClientReadsLinesLongerThanItsBufferAndLiterals(t *testing.T) {
	long := strings.Repeat("x", 100)
	c := connectToScript(t, func(w *testkit.Conn) {
		_, _ = io.WriteString(w, "* "+long+"\r\n* 1 FETCH (A {3}\r\n\r\n) B {0}\r\n C {two})\r\n* cut {9}\r\nshort")
	})
	if r, err := c.Read(); err != nil || r.Text != "* "+long {
		t.Errorf("%v, %v", r, err)
	}
	r, err := c.Read()
	if err != nil || r.Text != "* 1 FETCH (A {3} B {0} C {two})" || r.String() != `* 1 FETCH (A {3}"\r\n)" B {0}"" C {two})` {
		t.Errorf("%q %s, %v", r.Text, r, err)
	}
	if r, err := c.Read(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a literal that is cut short: %v, %v", r, err)
	}
	if r, err := c.Read(); !errors.Is(err, io.EOF) {
		t.Errorf("the end: %v, %v", r, err)
	}
}

func TestRawClientSendsLiteralsOfBothKinds(t *testing.T) {
	received := make(chan string, 1)
	c := connectToScript(t, func(w *testkit.Conn) {
		got, _ := w.R.ReadString('\n')
		_, _ = io.WriteString(w, "+ OK\r\n")
		for !strings.HasSuffix(got, "end\r\n") {
			line, err := w.R.ReadString('\n')
			if err != nil {
				break
			}
			got += line
		}
		received <- got
		_, _ = io.WriteString(w, "* untagged\r\na1 OK done\r\n")
		_, _ = w.R.ReadString('\n')
		_, _ = io.WriteString(w, "a2 NO too big\r\n")
	})
	got, err := c.Do("X {} {+} end", []byte("a\r\nb"), []byte("cd"))
	if err != nil || len(got) != 2 || got[1].Text != "a1 OK done" {
		t.Errorf("%v, %v", got, err)
	}
	if got := <-received; got != "a1 X {4}\r\na\r\nb {2+}\r\ncd end\r\n" {
		t.Errorf("the server received %q", got)
	}
	got, err = c.Do("APPEND INBOX {}", []byte("x"))
	if err != nil || len(got) != 1 || got[0].Text != "a2 NO too big" {
		t.Errorf("a refused literal: %v, %v", got, err)
	}
}
