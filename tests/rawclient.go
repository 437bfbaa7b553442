// Package tests tests complete gateways with real mail servers from outside, as mail clients
// do, and compares the responses with and without the gateway.
//
// Its RawClient is an IMAP client that sends exactly the given bytes and returns exactly the
// received bytes. It parses lines, literals and tags, and deliberately nothing else. A test
// owns its clients.
package tests

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	// Timeout bounds each read and write of a client.
	Timeout = 30 * time.Second
	// maxLine and maxLiteral bound the bytes of a line and a literal.
	maxLine    = 4 << 20
	maxLiteral = 80 << 20
	// maxShownLiteral is the longest literal that String does not abbreviate.
	maxShownLiteral = 400
)

// Literal markers in a command for Do or Send: {} becomes a synchronizing literal, {+} a
// non-synchronizing one (RFC 7888).
const (
	syncLiteral    = "{}"
	nonSyncLiteral = "{+}"
)

// RawClient is one IMAP connection.
type RawClient struct {
	// Owned by the caller.
	conn     net.Conn
	r        *bufio.Reader
	tagCount int
}

// Response is one response of a server, with its literals separated.
type Response struct {
	Text     string   // without CRLF, with {n} in the place of each literal
	Literals [][]byte // in the order of their {n}
}

// Connect opens a connection, over TLS unless conf is nil. It does not read the greeting.
func Connect(address string, conf *tls.Config) (*RawClient, error) {
	return ConnectFrom("", address, conf)
}

// ConnectFrom is Connect from a local address. On Linux any address of 127.0.0.0/8 works.
func ConnectFrom(ip, address string, conf *tls.Config) (*RawClient, error) {
	from := &net.TCPAddr{IP: net.ParseIP(ip)} // nil: chosen by the kernel
	conn, err := (&net.Dialer{Timeout: Timeout, LocalAddr: from}).Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	c := &RawClient{conn: conn, r: bufio.NewReaderSize(conn, 64<<10)}
	if conf != nil {
		if err := c.handshakeTLS(conf); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return c, nil
}

// handshakeTLS continues over TLS.
func (c *RawClient) handshakeTLS(conf *tls.Config) error {
	conn := tls.Client(c.conn, conf)
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	if err := conn.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	c.conn = conn
	c.r = bufio.NewReaderSize(conn, 64<<10)
	return nil
}

// StartTLS sends STARTTLS and continues over TLS.
func (c *RawClient) StartTLS(conf *tls.Config) error {
	got, err := c.Do("STARTTLS")
	if err != nil {
		return err
	}
	if last := got[len(got)-1]; !strings.Contains(last.Text, " OK ") {
		return fmt.Errorf("STARTTLS: %s", last.Text)
	}
	if n := c.r.Buffered(); n > 0 {
		return fmt.Errorf("the server sent %d bytes between its OK and TLS", n)
	}
	return c.handshakeTLS(conf)
}

// Close closes the connection without LOGOUT.
func (c *RawClient) Close() error { return c.conn.Close() }

// Write sends bytes unchanged.
func (c *RawClient) Write(b []byte) (int, error) {
	if err := c.conn.SetWriteDeadline(time.Now().Add(Timeout)); err != nil {
		return 0, err
	}
	return c.conn.Write(b)
}

// Read returns the next response. At the end of the stream it returns io.EOF, and in the
// middle of a response io.ErrUnexpectedEOF.
func (c *RawClient) Read() (Response, error) {
	var (
		r    Response
		text strings.Builder
	)
	for {
		line, err := c.readLine()
		if err != nil {
			if text.Len() > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return r, err
		}
		text.WriteString(line)
		size, ok := literalSize(line)
		if !ok {
			r.Text = text.String()
			return r, nil
		}
		if size > maxLiteral {
			return r, fmt.Errorf("literal of %d bytes", size)
		}
		literal := make([]byte, size)
		if err := c.extendDeadline(); err != nil {
			return r, err
		}
		if _, err := io.ReadFull(c.r, literal); err != nil {
			return r, io.ErrUnexpectedEOF
		}
		r.Literals = append(r.Literals, literal)
	}
}

// readLine reads a line and returns it without CRLF.
func (c *RawClient) readLine() (string, error) {
	if err := c.extendDeadline(); err != nil {
		return "", err
	}
	var line []byte
	for {
		part, err := c.r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil && strings.HasSuffix(string(line), "\r\n"):
			return string(line[:len(line)-2]), nil
		case err == nil:
			return "", fmt.Errorf("a line ends in a bare LF: %q", line)
		case errors.Is(err, bufio.ErrBufferFull) && len(line) < maxLine:
		case errors.Is(err, io.EOF) && len(line) > 0:
			return "", io.ErrUnexpectedEOF
		default:
			return "", err
		}
	}
}

// extendDeadline sets the deadline of the next read.
func (c *RawClient) extendDeadline() error { return c.conn.SetReadDeadline(time.Now().Add(Timeout)) }

// literalSize returns n for a line that ends in {n}.
func literalSize(line string) (int, bool) {
	open := strings.LastIndexByte(line, '{')
	if open < 0 || !strings.HasSuffix(line, "}") {
		return 0, false
	}
	n, err := strconv.Atoi(line[open+1 : len(line)-1])
	return n, err == nil && n >= 0
}

// Send sends one command and returns its tag without waiting for the response. Each {} or
// {+} stands for the next literal. For {} it waits for a continuation; any other response is
// a *RefusedError.
func (c *RawClient) Send(command string, literals ...[]byte) (string, error) {
	c.tagCount++
	tag := "a" + strconv.Itoa(c.tagCount)
	rest := tag + " " + command
	for _, literal := range literals {
		at, marker := nextLiteralMarker(rest)
		if at < 0 {
			return tag, fmt.Errorf("%q has no place for a literal", command)
		}
		head := fmt.Sprintf("%s{%d%s\r\n", rest[:at], len(literal), marker[1:])
		if _, err := io.WriteString(c, head); err != nil {
			return tag, err
		}
		if marker == syncLiteral {
			if err := c.awaitContinuation(); err != nil {
				return tag, err
			}
		}
		if _, err := c.Write(literal); err != nil {
			return tag, err
		}
		rest = rest[at+len(marker):]
	}
	_, err := io.WriteString(c, rest+"\r\n")
	return tag, err
}

// nextLiteralMarker returns the index and text of the first literal marker.
func nextLiteralMarker(s string) (int, string) {
	syncAt, nonSyncAt := strings.Index(s, syncLiteral), strings.Index(s, nonSyncLiteral)
	if syncAt < 0 || nonSyncAt >= 0 && nonSyncAt < syncAt {
		return nonSyncAt, nonSyncLiteral
	}
	return syncAt, syncLiteral
}

// RefusedError is the error of Send when the server answers a literal with another response
// than a continuation.
type RefusedError struct{ Response Response }

// Error implements error.
func (r *RefusedError) Error() string { return "literal refused: " + r.Response.Text }

// awaitContinuation waits for the continuation of a literal.
func (c *RawClient) awaitContinuation() error {
	r, err := c.Read()
	if err == nil && !strings.HasPrefix(r.Text, "+") {
		return &RefusedError{r}
	}
	return err
}

// ReadUntil reads responses up to the tagged one, and returns all of them.
func (c *RawClient) ReadUntil(tag string) ([]Response, error) {
	var all []Response
	for {
		r, err := c.Read()
		if err != nil {
			return all, err
		}
		all = append(all, r)
		if strings.HasPrefix(r.Text, tag+" ") {
			return all, nil
		}
	}
}

// Do sends one command and reads up to its tagged response. A tagged response in the place
// of a continuation is returned, not an error.
func (c *RawClient) Do(command string, literals ...[]byte) ([]Response, error) {
	tag, err := c.Send(command, literals...)
	var refused *RefusedError
	if errors.As(err, &refused) && strings.HasPrefix(refused.Response.Text, tag+" ") {
		return []Response{refused.Response}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("send %s: %w", command, err)
	}
	all, err := c.ReadUntil(tag)
	if err != nil {
		return all, fmt.Errorf("response to %s: %w", command, err)
	}
	return all, nil
}

// String returns a response with its literals in their places. A long literal is replaced by
// its SHA-256.
func (r Response) String() string {
	var b strings.Builder
	rest := r.Text
	for _, literal := range r.Literals {
		marker := fmt.Sprintf("{%d}", len(literal))
		before, after, _ := strings.Cut(rest, marker)
		b.WriteString(before + marker)
		if len(literal) <= maxShownLiteral {
			fmt.Fprintf(&b, "%q", literal)
		} else {
			fmt.Fprintf(&b, "sha256:%x", sha256.Sum256(literal))
		}
		rest = after
	}
	return b.String() + rest
}
