package model

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// patience is how long a client waits for one response.
	patience = 20 * time.Second
	// maxLine and maxLiteral bound what a client takes from a server.
	maxLine    = 1 << 20
	maxLiteral = 1 << 20
	// keptLines is how many lines of the wire a failure shows for each actor,
	// unless it was asked for more.
	keptLines = 60
	// shownLine is how much of each it shows.
	shownLine = 240
)

// Response is one response of a server: its line, with the literals taken out.
type Response struct {
	Text     string   // without CRLF; where a literal was, {n} is left
	Literals []string // in the order of their {n}
}

// Ended is the error of a stream that is over.
type Ended struct {
	Bye    string // what the server said, "" when it said nothing
	Inside bool   // in the middle of a response
	Cause  error
}

// Error implements error.
func (e *Ended) Error() string {
	switch {
	case e.Bye != "":
		return "the server said goodbye: " + e.Bye
	case e.Inside:
		return fmt.Sprintf("the connection ended inside a response: %v", e.Cause)
	}
	return fmt.Sprintf("the connection ended: %v", e.Cause)
}

// Unwrap gives the cause.
func (e *Ended) Unwrap() error { return e.Cause }

// transcript keeps the end of what was said on the wire.
type transcript struct {
	clock interface{ Add(int64) int64 } // numbers the lines of all actors
	keep  int                           // how many are kept
	lines []string
}

func (t *transcript) add(who, line string) {
	line = strings.TrimSuffix(line, "\r\n")
	if len(line) > shownLine {
		line = fmt.Sprintf("%s… (%d bytes)", line[:shownLine], len(line))
	}
	if len(t.lines) >= 2*t.keep {
		t.lines = append(t.lines[:0], t.lines[t.keep:]...)
	}
	t.lines = append(t.lines, fmt.Sprintf("%7d %s %q", t.clock.Add(1), who, line))
}

func (t *transcript) String() string {
	return strings.Join(t.lines[max(0, len(t.lines)-t.keep):], "\n")
}

// wire is one connection to a server.
type wire struct {
	conn *net.TCPConn
	r    *bufio.Reader
	said *transcript
}

func dial(address string, said *transcript) (*wire, error) {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return nil, err
	}
	said.add("--", "connected to "+address)
	return &wire{conn: conn.(*net.TCPConn), r: bufio.NewReaderSize(conn, 16<<10), said: said}, nil
}

// close ends the connection without a word.
func (w *wire) close() { _ = w.conn.Close() }

// send writes bytes as they are.
func (w *wire) send(b string) error {
	w.said.add("C:", b)
	if err := w.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return &Ended{Cause: err}
	}
	if _, err := io.WriteString(w.conn, b); err != nil {
		return &Ended{Cause: err}
	}
	return nil
}

// waiting says whether something can be read at once, the end of the stream
// included.
func (w *wire) waiting() bool {
	if w.r.Buffered() > 0 {
		return true
	}
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return true
	}
	ready := true
	err = raw.Read(func(fd uintptr) bool {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		ready = !errors.Is(err, syscall.EAGAIN)
		return true
	})
	return ready || err != nil
}

// read gives the next response. What is no response at all is a violation, the
// end of the stream an *Ended.
func (w *wire) read() (Response, error) {
	if err := w.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return Response{}, &Ended{Cause: err}
	}
	var (
		r    Response
		text strings.Builder
	)
	for {
		line, err := w.line()
		if err != nil {
			return r, w.over(err, text.Len() > 0)
		}
		text.WriteString(line)
		size, ok := literalSize(line)
		if !ok {
			r.Text = text.String()
			return r, nil
		}
		if size > maxLiteral {
			return r, violation("a literal of %d bytes", size)
		}
		literal := make([]byte, size)
		n, err := io.ReadFull(w.r, literal)
		w.said.add("S:", string(literal[:n]))
		if err != nil {
			return r, w.over(err, true)
		}
		r.Literals = append(r.Literals, string(literal))
	}
}

// line reads up to CRLF and gives what stands before it.
func (w *wire) line() (string, error) {
	b, err := w.r.ReadSlice('\n')
	line := string(b)
	for errors.Is(err, bufio.ErrBufferFull) && len(line) < maxLine {
		b, err = w.r.ReadSlice('\n')
		line += string(b)
	}
	if line != "" {
		w.said.add("S:", line)
	}
	if err != nil {
		if line != "" && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	body, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsAny(body, "\r\x00") {
		return "", violation("no line of IMAP: %q", line)
	}
	return body, nil
}

// over says how a stream ended, unless it went wrong in another way.
func (w *wire) over(err error, inside bool) error {
	var v *Violation
	switch {
	case errors.As(err, &v):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return violation("nothing was answered within %v", patience)
	}
	w.said.add("--", err.Error())
	return &Ended{Cause: err, Inside: inside || errors.Is(err, io.ErrUnexpectedEOF)}
}

// literalSize is the n of a line that ends in {n}. The text of a status response
// never does in these tests.
func literalSize(line string) (int, bool) {
	open := strings.LastIndexByte(line, '{')
	if open < 0 || !strings.HasSuffix(line, "}") {
		return 0, false
	}
	n, err := strconv.Atoi(line[open+1 : len(line)-1])
	return n, err == nil && n >= 0
}
