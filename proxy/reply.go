package proxy

import (
	"errors"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/login"
	"io"
	"os"
	"syscall"
)

// closeError ends a connection before its login, with a reason and the text of the BYE, ""
// for none.
type closeError struct {
	reason event.Reason
	bye    string
	err    error
}

func (e *closeError) Error() string {
	if e.err != nil {
		return string(e.reason) + ": " + e.err.Error()
	}
	return string(e.reason)
}

func (e *closeError) Unwrap() error { return e.err }

// welcome sends the tagged OK of the login, last of all, with the capabilities of the
// backend in this mode. They are in a response code, and untagged too for a client that has
// sent CAPABILITY and may ignore response codes.
func (c *connection) welcome(a *login.Attempt, up login.Upstream, offered imap.Caps) error {
	caps := offered.String()
	c.outBuf = c.outBuf[:0]
	if c.preauth.repeatCaps && caps != "" {
		c.outBuf = append(append(append(c.outBuf, "* CAPABILITY "...), caps...), "\r\n"...)
	}
	c.outBuf = up.OK().AppendUntagged(c.outBuf)
	c.outBuf = append(append(c.outBuf, a.Tag...), " OK "...)
	if caps != "" {
		c.outBuf = append(append(append(c.outBuf, "[CAPABILITY "...), caps...), "] "...)
	}
	c.outBuf = append(c.outBuf, "Logged in.\r\n"...)
	_, err := c.conn.Write(c.outBuf)
	return err
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
