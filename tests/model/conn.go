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
	// responseTimeout is how long a client waits for one response.
	responseTimeout = 20 * time.Second
	// maxLine and maxLiteral bound what a client takes from a server.
	maxLine    = 1 << 20
	maxLiteral = 1 << 20
	// defaultTranscriptLines is how many lines of the wire a failure shows for each actor,
	// unless it was asked for more.
	defaultTranscriptLines = 60
	// maxShownLine is how much of each it shows.
	maxShownLine = 240
)

// Response is one response of a server: its line, with the literals taken out.
type Response struct {
	Text     string   // without CRLF; where a literal was, {n} is left
	Literals []string // in the order of their {n}
}

// EndError is the error of a stream that is over.
type EndError struct {
	Bye            string // what the server said, "" when it said nothing
	InsideResponse bool   // in the middle of a response
	Cause          error
}

// Error implements error.
func (e *EndError) Error() string {
	switch {
	case e.Bye != "":
		return "the server said goodbye: " + e.Bye
	case e.InsideResponse:
		return fmt.Sprintf("the connection ended inside a response: %v", e.Cause)
	}
	return fmt.Sprintf("the connection ended: %v", e.Cause)
}

// Unwrap gives the cause.
func (e *EndError) Unwrap() error { return e.Cause }

// transcript keeps the end of what was said on the wire.
type transcript struct {
	lineCounter interface{ Add(int64) int64 } // numbers the lines of all actors
	limit       int                           // how many are kept
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

// close ends the connection without a word.
func (w *imapConn) close() { _ = w.conn.Close() }

// sendBytes writes bytes as they are.
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

// isReadable says whether something can be read at once, the end of the stream
// included.
func (w *imapConn) isReadable() bool {
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

// readResponse gives the next response. What is no response at all is a violation, the
// end of the stream an *Ended.
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

// readLine reads up to CRLF and gives what stands before it.
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
		return "", newViolation("no line of IMAP: %q", line)
	}
	return body, nil
}

// wrapReadError says how a stream ended, unless it went wrong in another way.
func (w *imapConn) wrapReadError(err error, inside bool) error {
	var v *Violation
	switch {
	case errors.As(err, &v):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return newViolation("nothing was answered within %v", responseTimeout)
	}
	w.transcript.add("--", err.Error())
	return &EndError{Cause: err, InsideResponse: inside || errors.Is(err, io.ErrUnexpectedEOF)}
}

// literalSize is the n of a line that ends in {n}. The text of a status response
// never does in these tests.
func literalSize(line string) (int, bool) {
	start := strings.LastIndexByte(line, '{')
	if start < 0 || !strings.HasSuffix(line, "}") {
		return 0, false
	}
	n, err := strconv.Atoi(line[start+1 : len(line)-1])
	return n, err == nil && n >= 0
}
