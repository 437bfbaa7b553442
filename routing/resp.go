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

// Bounds of one RESP3 message. Redis names all keys of one script or transaction
// in one message; a larger one ends the connection, and a new connection starts
// with everything in doubt, which is the same news.
const (
	maxValues = 100_000 // in one message, nested ones included
	maxText   = 64 << 10
	maxDepth  = 4
)

// errProtocol is a server that does not speak RESP3.
var errProtocol = errors.New("not a RESP3 message")

// message is one RESP3 value.
type message struct {
	respType byte      // its first byte: > is a push, - an error
	text     string    // of everything that is not an aggregate
	list     []message // of an aggregate; keys and values of a map in turn
}

// respConn speaks RESP3 on one connection. go-redis does not serve here: its PubSub
// takes Redis's "all keys were flushed" for a broken message, its push handlers
// run when a command happens to be sent, and its client-side cache is for a
// single server. Reading and writing may happen at the same time.
type respConn struct {
	// Set once.
	conn net.Conn
	r    *bufio.Reader

	// Owned by the reader.
	valuesLeft int // values the current message may still have
}

func newRESPConn(conn net.Conn) *respConn { return &respConn{conn: conn, r: bufio.NewReader(conn)} }

// send writes one command; it must be taken within limit.
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

// receive reads one message, which must be whole within limit.
func (c *respConn) receive(timeout time.Duration) (message, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return message{}, err
	}
	c.valuesLeft = maxValues
	return c.readValue(0)
}

// call sends a command and gives its reply, while nothing else is under way. An
// error reply is an error of type redisError.
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

// redisError is what Redis said no with.
type redisError string

func (e redisError) Error() string { return string(e) }

// mentions says whether any of the words, in lower case, is in the text: servers
// differ in how they say that they do not know a command.
func (e redisError) mentions(words ...string) bool {
	text := strings.ToLower(string(e))
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// readValue reads one value and what is nested in it.
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
	return message{}, fmt.Errorf("%w: it begins with %q", errProtocol, m.respType)
}

// readLine reads up to CR LF, at least one byte.
func (c *respConn) readLine() ([]byte, error) {
	line, err := c.r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("%w: a line without an end", errProtocol)
	case err != nil:
		return nil, err
	case len(line) < 3 || line[len(line)-2] != '\r':
		return nil, fmt.Errorf("%w: a line without CR LF", errProtocol)
	}
	return line[:len(line)-2], nil
}

// parseLength is a length, between 0 and most; -1 is null in RESP2's way.
func parseLength(text string, limit int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < -1 || n > limit {
		return 0, fmt.Errorf("%w: a length of %.20q", errProtocol, text)
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
		return "", fmt.Errorf("%w: a string longer than announced", errProtocol)
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
	var list []message // grown by what arrives, not by what is announced
	for range n {
		v, err := c.readValue(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// closeOnDone ends the connection when ctx does, which also ends a read or write
// that is under way. The caller calls the result when it is done.
func (c *respConn) closeOnDone(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	return func() {
		stop()
		_ = c.conn.Close()
	}
}
