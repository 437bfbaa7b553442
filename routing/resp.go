package routing

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of one RESP3 message. Redis names all keys of one script or transaction in one
// message. A larger message closes the connection; after a reconnect all entries are suspect,
// which covers the same changes.
const (
	maxValues = 100_000 // in one message, nested ones included
	maxText   = 64 << 10
	maxDepth  = 4
)

// errProtocol means that the server does not speak RESP3.
var errProtocol = errors.New("not a RESP3 message")

// message is one RESP3 value.
type message struct {
	respType byte      // its first byte: > is a push, - an error
	text     string    // of everything that is not an aggregate
	list     []message // of an aggregate; keys and values of a map in turn
}

// respConn speaks RESP3 on one connection. go-redis is unsuitable: its PubSub rejects Redis's
// flush notification as malformed, its push handlers run only when a command is sent, and its
// client-side cache is for a single server. One read and one write may happen concurrently.
type respConn struct {
	// Set once.
	conn net.Conn
	r    *bufio.Reader

	// Owned by the reader.
	valuesLeft int // values the current message may still contain
}

func newRESPConn(conn net.Conn) *respConn { return &respConn{conn: conn, r: bufio.NewReader(conn)} }

// send writes one command within timeout.
func (c *respConn) send(timeout time.Duration, args ...string) error {
	b := append(strconv.AppendInt([]byte("*"), int64(len(args)), 10), "\r\n"...)
	for _, a := range args {
		b = append(strconv.AppendInt(append(b, '$'), int64(len(a)), 10), "\r\n"...)
		b = append(append(b, a...), "\r\n"...)
	}
	if err := c.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := c.conn.Write(b)
	return err
}

// receive reads one complete message within timeout.
func (c *respConn) receive(timeout time.Duration) (message, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return message{}, err
	}
	c.valuesLeft = maxValues
	return c.readValue(0)
}

// call sends a command and returns its reply; no other command may be outstanding. An error
// reply is returned as a redisError.
func (c *respConn) call(timeout time.Duration, args ...string) (message, error) {
	if err := c.send(timeout, args...); err != nil {
		return message{}, err
	}
	for {
		m, err := c.receive(timeout)
		if err != nil {
			return message{}, err
		}
		switch m.respType {
		case '-', '!':
			return message{}, redisError(m.text)
		case '>':
			continue
		}
		return m, nil
	}
}

// redisError is the text of an error reply.
type redisError string

func (e redisError) Error() string { return string(e) }

// mentions reports whether the text contains any of the words, which are in lower case. The
// texts for unknown commands differ between servers.
func (e redisError) mentions(words ...string) bool {
	text := strings.ToLower(string(e))
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// readValue reads one value and the values nested in it.
func (c *respConn) readValue(depth int) (message, error) {
	if c.valuesLeft--; c.valuesLeft < 0 || depth > maxDepth {
		return message{}, fmt.Errorf("%w: too large", errProtocol)
	}
	line, err := c.readLine()
	if err != nil {
		return message{}, err
	}
	m := message{respType: line[0], text: string(line[1:])}
	switch m.respType {
	case '+', '-', ':', '_', '#', ',', '(':
		return m, nil
	case '$', '=', '!':
		m.text, err = c.readBulk(m.text)
		return m, err
	case '*', '~', '>', '%', '|':
		m.list, err = c.readList(m, depth)
		return m, err
	}
	return message{}, fmt.Errorf("%w: unknown type %q", errProtocol, m.respType)
}

// readLine reads up to CR LF, at least one byte.
func (c *respConn) readLine() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: a line is too long", errProtocol)
	case err != nil:
		return nil, err
	case len(line) < 3 || line[len(line)-2] != '\r':
		return nil, fmt.Errorf("%w: a line without CR LF", errProtocol)
	}
	return line[:len(line)-2], nil
}

// parseLength parses a length between 0 and limit; -1 is RESP2's null.
func parseLength(text string, limit int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < -1 || n > limit {
		return 0, fmt.Errorf("%w: invalid length %.20q", errProtocol, text)
	}
	return n, nil
}

func (c *respConn) readBulk(length string) (string, error) {
	n, err := parseLength(length, maxText)
	if err != nil || n < 0 {
		return "", err
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(c.r, b); err != nil {
		return "", err
	}
	if b[n] != '\r' || b[n+1] != '\n' {
		return "", fmt.Errorf("%w: a string is longer than announced", errProtocol)
	}
	return string(b[:n]), nil
}

func (c *respConn) readList(m message, depth int) ([]message, error) {
	n, err := parseLength(m.text, maxValues)
	if err != nil {
		return nil, err
	}
	if m.respType == '%' || m.respType == '|' {
		n *= 2
	}
	var list []message // grows with the received values, not to the announced length
	for range n {
		v, err := c.readValue(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// closeOnDone closes the connection when ctx ends, which also aborts a running read or write.
// The caller calls the result, which closes the connection, too.
func (c *respConn) closeOnDone(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	return func() {
		stop()
		_ = c.conn.Close()
	}
}
