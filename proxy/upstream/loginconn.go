package upstream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"imapgate/internal/imap"
	"imapgate/tlsconf"
)

// Bounds on what is read from a backend before its login completes.
const (
	maxLine  = 8 << 10  // bytes of a line
	maxTotal = 64 << 10 // bytes in total

	maxAlerts = 4 // untagged ALERTs kept, each with up to maxText bytes
)

// Prefixes of the command tags on one connection.
const (
	tagCapability     = "C"
	tagStartTLS       = "S"
	tagID             = "I"
	tagCapsAfterLogin = "A"
	tagLogin          = "L" // later letters for other forms of the login
)

// loginConn is a connection to a backend until the tagged OK of its login.
type loginConn struct {
	// Set once.
	conn      *imap.Conn
	tagSuffix string // at least 64 random bits, so that no answer can precede its command

	// Owned by the goroutine of Login.
	loginTag  string // has its own random bits, which no earlier command reveals
	deadline  time.Time
	bytesLeft int         // left of maxTotal
	id        string      // for Conn.ID
	tlsConn   *tls.Conn   // nil before TLS
	tlsConfig *tls.Config // of tlsConn
	caps      imap.Caps   // latest list; unknown again after STARTTLS
	alerts    []Alert     // since the start of TLS; at most maxAlerts
}

func newLoginConn(nc net.Conn) *loginConn {
	random := rand.Text() // 26 characters of 5 bits
	return &loginConn{
		conn:      imap.NewConn(nc, imap.Responses, maxLine),
		tagSuffix: random[:13],
		loginTag:  tagLogin + random[13:],
		bytesLeft: maxTotal,
	}
}

// renewLoginTag sets a new tag for the next form of the login, the one after try others.
func (c *loginConn) renewLoginTag(try int) {
	c.loginTag = string(tagLogin[0]+byte(try)) + rand.Text()[:13]
}

// bind makes the login end with ctx and at the deadline.
func (c *loginConn) bind(ctx context.Context, deadline time.Time) (release func() bool) {
	release = c.conn.BindContext(ctx)
	c.deadline = deadline
	c.conn.SetDeadline(deadline)
	return release
}

// extendDeadline gives the backend at least minWait from now, even beyond the deadline of the
// login.
func (c *loginConn) extendDeadline(minWait time.Duration) {
	if deadline := time.Now().Add(minWait); deadline.After(c.deadline) {
		c.conn.SetDeadline(deadline)
	}
}

// readResponse reads one response. Literals are skipped; if there are any, Line is nil.
func (c *loginConn) readResponse() (imap.Response, error) {
	s, err := c.readSegment()
	if err != nil {
		return imap.Response{}, err
	}
	res, err := imap.ParseResponse(s.Bytes[:len(s.Bytes)-len("\r\n")])
	if err != nil {
		return res, fmt.Errorf("%w: %w", errProtocol, err)
	}
	for !s.End {
		res.Line = nil
		if s, err = c.readSegment(); err != nil {
			return res, err
		}
	}
	return res, nil
}

// readSegment reads a part of a response within the budget.
func (c *loginConn) readSegment() (imap.Segment, error) {
	s, err := c.conn.Next()
	if errors.Is(err, imap.ErrLineEnding) || errors.Is(err, imap.ErrLiteral) {
		return s, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if err != nil {
		return s, err
	}
	c.bytesLeft -= len(s.Bytes)
	if c.bytesLeft < 0 || s.Literal.Size > int64(c.bytesLeft) || s.Kind == imap.LinePart {
		return s, errBudget
	}
	return s, nil
}

// readGreeting reads the backend's first line.
func (c *loginConn) readGreeting() error {
	res, err := c.readResponse()
	switch {
	case err != nil:
		return err
	case res.Kind != imap.Untagged:
		return errGreeting
	case res.Name == "OK":
		c.recordCaps(res)
		c.recordAlert(res)
		return nil
	}
	if err := untaggedError(res); err != nil {
		return err
	}
	return errGreeting
}

// recordCaps stores a capability list, which may come in three places (RFC 9051 §7.1, §7.2.2).
func (c *loginConn) recordCaps(res imap.Response) {
	switch {
	case res.Name == "OK" && res.Code == "CAPABILITY":
		c.caps = imap.ParseCaps(res.Arg)
	case res.Kind == imap.Untagged && res.Name == "CAPABILITY":
		c.caps = imap.ParseCaps(res.Text)
	}
}

// recordAlert stores an untagged ALERT, which must be shown to the user (RFC 9051 §7.1).
func (c *loginConn) recordAlert(res imap.Response) {
	if res.Code != "ALERT" || len(c.alerts) == maxAlerts {
		return
	}
	switch text := sanitizeText(res.Text); {
	case text == "":
	case res.Name == "OK", res.Name == "NO", res.Name == "BAD":
		c.alerts = append(c.alerts, Alert{res.Name, text})
	}
}

// untaggedError returns the error of an untagged response. A PREAUTH session belongs to an
// unknown user, at any time.
func untaggedError(res imap.Response) error {
	switch res.Name {
	case "BYE":
		return fmt.Errorf("%w: %s", errBye, DescribeResponse(res))
	case "PREAUTH":
		return errPreauth
	}
	return nil
}

// readAnswer reads up to the answer to the command tag, which may be a continuation request.
// Of the untagged responses before it, only ALERTs can be forwarded.
func (c *loginConn) readAnswer(tag string) (imap.Response, error) {
	for {
		res, err := c.readResponse()
		if err != nil {
			return res, err
		}
		switch {
		case res.Kind == imap.Continuation:
			return res, nil
		case res.Kind == imap.Tagged && res.Tag == tag:
			return res, nil
		case res.Kind == imap.Tagged:
			return res, errWrongTag
		}
		if err := untaggedError(res); err != nil {
			return res, err
		}
		c.recordCaps(res)
		c.recordAlert(res)
	}
}

// readTagged is readAnswer without continuation requests.
func (c *loginConn) readTagged(tag string) (imap.Response, error) {
	res, err := c.readAnswer(tag)
	if err == nil && res.Kind == imap.Continuation {
		err = errContinuation
	}
	return res, err
}

// runCommand sends a command without arguments and reads its answer.
func (c *loginConn) runCommand(letter, name string) (imap.Response, error) {
	tag := letter + c.tagSuffix
	if _, err := c.conn.Write([]byte(tag + " " + name + "\r\n")); err != nil {
		return imap.Response{}, err
	}
	return c.readTagged(tag)
}

// requireCaps requests the capability list if the backend has not sent it.
func (c *loginConn) requireCaps() error {
	if c.caps.IsKnown() {
		return nil
	}
	res, err := c.runCommand(tagCapability, "CAPABILITY")
	if err != nil {
		return err
	}
	c.recordCaps(res)
	if res.Name != "OK" || !c.caps.IsKnown() {
		return errCapability
	}
	return nil
}

// startTLS continues under TLS, or not at all. Bytes that were not requested may be an
// attacker's, and bytes after the OK would be read as if TLS had protected them
// (RFC 9051 §6.2.1).
func (c *loginConn) startTLS(cfg *tls.Config) error {
	if c.conn.Buffered() > 0 {
		return errUnsolicited
	}
	if err := c.requireCaps(); err != nil {
		return err
	}
	if !c.caps.Has("STARTTLS") {
		return errNoStartTLS
	}
	if c.conn.Buffered() > 0 {
		return errUnsolicited
	}
	res, err := c.runCommand(tagStartTLS, "STARTTLS")
	if err != nil {
		return err
	}
	if res.Name != "OK" {
		return fmt.Errorf("%w: %s", errStartTLS, DescribeResponse(res))
	}
	return c.handshakeTLS(cfg)
}

// certificateError explains an error that means a missing or rejected client certificate. With
// TLS 1.3 it arrives after the handshake.
func (c *loginConn) certificateError(err error) error {
	if c.tlsConn == nil || err == nil {
		return err
	}
	return tlsconf.ExplainWriteError(c.tlsConn, c.tlsConfig, err)
}

// handshakeTLS starts TLS and forgets what was received before.
func (c *loginConn) handshakeTLS(cfg *tls.Config) error {
	var tlsConn *tls.Conn
	err := c.conn.Upgrade(func(nc net.Conn) net.Conn {
		tlsConn = tls.Client(nc, cfg)
		return tlsConn
	})
	if err != nil {
		return err
	}
	c.caps, c.alerts = imap.Caps{}, nil
	c.tlsConn, c.tlsConfig = tlsConn, cfg
	if err := tlsConn.Handshake(); err != nil { // within the deadline of the login
		err = tlsconf.ExplainError(err, cfg)
		return fmt.Errorf("%w: %w", errTLS, explainTLSError(err, cfg.ServerName))
	}
	return nil
}
