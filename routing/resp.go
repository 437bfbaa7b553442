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
	kind byte      // its first byte: > is a push, - an error
	text string    // of everything that is not an aggregate
	list []message // of an aggregate; keys and values of a map in turn
}

// wire speaks RESP3 on one connection. go-redis does not serve here: its PubSub
// takes Redis's "all keys were flushed" for a broken message, its push handlers
// run when a command happens to be sent, and its client-side cache is for a
// single server. Reading and writing may happen at the same time.
type wire struct {
	// Set once.
	conn net.Conn
	r    *bufio.Reader

	// Owned by the reader.
	left int // values the current message may still have
}

func newWire(conn net.Conn) *wire { return &wire{conn: conn, r: bufio.NewReader(conn)} }

// send writes one command; it must be taken within limit.
func (w *wire) send(limit time.Duration, args ...string) error {
	b := append(strconv.AppendInt([]byte("*"), int64(len(args)), 10), "\r\n"...)
	for _, a := range args {
		b = append(strconv.AppendInt(append(b, '$'), int64(len(a)), 10), "\r\n"...)
		b = append(append(b, a...), "\r\n"...)
	}
	if err := w.conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	_, err := w.conn.Write(b)
	return err
}

// receive reads one message, which must be whole within limit.
func (w *wire) receive(limit time.Duration) (message, error) {
	if err := w.conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return message{}, err
	}
	w.left = maxValues
	return w.value(0)
}

// call sends a command and gives its reply, while nothing else is under way. An
// error reply is an error of type redisError.
func (w *wire) call(limit time.Duration, args ...string) (message, error) {
	if err := w.send(limit, args...); err != nil {
		return message{}, err
	}
	for {
		m, err := w.receive(limit)
		if err != nil {
			return message{}, err
		}
		switch m.kind {
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

// means says whether any of the words, in lower case, is in the text: servers
// differ in how they say that they do not know a command.
func (e redisError) means(words ...string) bool {
	text := strings.ToLower(string(e))
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// value reads one value and what is nested in it.
func (w *wire) value(depth int) (message, error) {
	if w.left--; w.left < 0 || depth > maxDepth {
		return message{}, fmt.Errorf("%w: too large", errProtocol)
	}
	line, err := w.line()
	if err != nil {
		return message{}, err
	}
	m := message{kind: line[0], text: string(line[1:])}
	switch m.kind {
	case '+', '-', ':', '_', '#', ',', '(':
		return m, nil
	case '$', '=', '!':
		m.text, err = w.bulk(m.text)
		return m, err
	case '*', '~', '>', '%', '|':
		m.list, err = w.list(m, depth)
		return m, err
	}
	return message{}, fmt.Errorf("%w: it begins with %q", errProtocol, m.kind)
}

// line reads up to CR LF, at least one byte.
func (w *wire) line() ([]byte, error) {
	line, err := w.r.ReadSlice('\n')
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

// count is a length, between 0 and most; -1 is null in RESP2's way.
func count(text string, most int) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < -1 || n > most {
		return 0, fmt.Errorf("%w: a length of %.20q", errProtocol, text)
	}
	return n, nil
}

func (w *wire) bulk(length string) (string, error) {
	n, err := count(length, maxText)
	if err != nil || n < 0 {
		return "", err
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(w.r, b); err != nil {
		return "", err
	}
	if b[n] != '\r' || b[n+1] != '\n' {
		return "", fmt.Errorf("%w: a string longer than announced", errProtocol)
	}
	return string(b[:n]), nil
}

func (w *wire) list(m message, depth int) ([]message, error) {
	n, err := count(m.text, maxValues)
	if err != nil {
		return nil, err
	}
	if m.kind == '%' || m.kind == '|' {
		n *= 2
	}
	var list []message // grown by what arrives, not by what is announced
	for range n {
		v, err := w.value(depth + 1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	return list, nil
}

// closeWith ends the connection when ctx does, which also ends a read or write
// that is under way. The caller calls the result when it is done.
func (w *wire) closeWith(ctx context.Context) func() {
	stop := context.AfterFunc(ctx, func() { _ = w.conn.Close() })
	return func() {
		stop()
		_ = w.conn.Close()
	}
}
