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
	// responseTimeout bounds the wait for one response.
	responseTimeout = 20 * time.Second
	// maxLine and maxLiteral bound the bytes of a line and a literal.
	maxLine    = 1 << 20
	maxLiteral = 1 << 20
	// defaultTranscriptLines is how many transcript lines a failure shows for each client
	// by default.
	defaultTranscriptLines = 60
	// maxShownLine bounds the bytes shown of each line.
	maxShownLine = 240
)

// Response is one response of a server, with its literals separated.
type Response struct {
	Text     string   // without CRLF, with {n} in the place of each literal
	Literals []string // in the order of their {n}
}

// EndError reports that the stream has ended.
type EndError struct {
	Bye            string // the server's BYE, or ""
	InsideResponse bool   // ended in the middle of a response
	Cause          error
}

// Error implements error.
func (e *EndError) Error() string {
	switch {
	case e.Bye != "":
		return "the server sent " + e.Bye
	case e.InsideResponse:
		return fmt.Sprintf("the connection ended inside a response: %v", e.Cause)
	}
	return fmt.Sprintf("the connection ended: %v", e.Cause)
}

// Unwrap returns the cause.
func (e *EndError) Unwrap() error { return e.Cause }

// transcript keeps the last lines of a connection.
type transcript struct {
	lineCounter interface{ Add(int64) int64 } // numbers the lines of all clients
	limit       int                           // lines to keep
	lines       []string
}

func (t *transcript) add(direction, line string) {
	line = strings.TrimSuffix(line, "\r\n")
	if len(line) > maxShownLine {
		line = fmt.Sprintf("%s… (%d bytes)", line[:maxShownLine], len(line))
	}
	if len(t.lines) >= 2*t.limit {
		t.lines = append(t.lines[:0], t.lines[t.limit:]...)
	}
	t.lines = append(t.lines, fmt.Sprintf("%7d %s %q", t.lineCounter.Add(1), direction, line))
}

func (t *transcript) String() string {
	return strings.Join(t.lines[max(0, len(t.lines)-t.limit):], "\n")
}

// imapConn is one connection to a server.
type imapConn struct {
	conn       *net.TCPConn
	r          *bufio.Reader
	transcript *transcript
}

func dial(address string, log *transcript) (*imapConn, error) {
	conn, err := net.DialTimeout("tcp", address, responseTimeout)
	if err != nil {
		return nil, err
	}
	log.add("--", "connected to "+address)
	return &imapConn{conn: conn.(*net.TCPConn), r: bufio.NewReaderSize(conn, 16<<10), transcript: log}, nil
}

// close closes the connection without LOGOUT.
func (w *imapConn) close() { _ = w.conn.Close() }

// sendBytes writes bytes unchanged.
func (w *imapConn) sendBytes(b string) error {
	w.transcript.add("C:", b)
	if err := w.conn.SetWriteDeadline(time.Now().Add(responseTimeout)); err != nil {
		return &EndError{Cause: err}
	}
	if _, err := io.WriteString(w.conn, b); err != nil {
		return &EndError{Cause: err}
	}
	return nil
}

// isReadable reports whether a read would return at once, also with EOF.
func (w *imapConn) isReadable() bool {
	if w.r.Buffered() > 0 {
		return true
	}
	raw, err := w.conn.SyscallConn()
	if err != nil || w.conn.SetReadDeadline(time.Time{}) != nil { // one that has passed would count as readable
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

// readResponse returns the next response. It returns a *Violation for malformed input and
// an *EndError at the end of the stream.
func (w *imapConn) readResponse() (Response, error) {
	if err := w.conn.SetReadDeadline(time.Now().Add(responseTimeout)); err != nil {
		return Response{}, &EndError{Cause: err}
	}
	var (
		r    Response
		text strings.Builder
	)
	for {
		line, err := w.readLine()
		if err != nil {
			return r, w.wrapReadError(err, text.Len() > 0)
		}
		text.WriteString(line)
		size, ok := literalSize(line)
		if !ok {
			r.Text = text.String()
			return r, nil
		}
		if size > maxLiteral {
			return r, newViolation("a literal of %d bytes", size)
		}
		literal := make([]byte, size)
		n, err := io.ReadFull(w.r, literal)
		w.transcript.add("S:", string(literal[:n]))
		if err != nil {
			return r, w.wrapReadError(err, true)
		}
		r.Literals = append(r.Literals, string(literal))
	}
}

// readLine reads a line and returns it without CRLF.
func (w *imapConn) readLine() (string, error) {
	b, err := w.r.ReadSlice('\n')
	line := string(b)
	for errors.Is(err, bufio.ErrBufferFull) && len(line) < maxLine {
		b, err = w.r.ReadSlice('\n')
		line += string(b)
	}
	if line != "" {
		w.transcript.add("S:", line)
	}
	if err != nil {
		if line != "" && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return "", err
	}
	body, ok := strings.CutSuffix(line, "\r\n")
	if !ok || strings.ContainsAny(body, "\r\x00") {
		return "", newViolation("malformed line: %q", line)
	}
	return body, nil
}

// wrapReadError returns violations unchanged, a violation for a time-out, and an
// *EndError for anything else.
func (w *imapConn) wrapReadError(err error, inside bool) error {
	var v *Violation
	switch {
	case errors.As(err, &v):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newViolation("no response within %v", responseTimeout)
	}
	w.transcript.add("--", err.Error())
	return &EndError{Cause: err, InsideResponse: inside || errors.Is(err, io.ErrUnexpectedEOF)}
}

// literalSize returns n for a line that ends in {n}. In these tests the text of a status
// response never does.
func literalSize(line string) (int, bool) {
	start := strings.LastIndexByte(line, '{')
	if start < 0 || !strings.HasSuffix(line, "}") {
		return 0, false
	}
	n, err := strconv.Atoi(line[start+1 : len(line)-1])
	return n, err == nil && n >= 0
}
