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

// What is read of a backend before its login is done.
const (
	maxLine  = 8 << 10  // bytes of a line
	maxTotal = 64 << 10 // bytes altogether

	maxAlerts = 4 // untagged ALERTs of which the text, of up to maxText, is kept
)

// The letters that tell the tags of one connection apart.
const (
	tagCapability = "C"
	tagStartTLS   = "S"
	tagID         = "I"
	tagAfter      = "A"
	tagLogin      = "L" // and the letters after it, where the login is tried in other forms
)

// dialogue is the conversation with a backend up to its tagged OK of the login.
type dialogue struct {
	// Set once.
	conn *imap.Conn
	tag  string // at least 64 random bits, so that no answer comes before its command

	// Owned by the goroutine of Login.
	last     string // tag of the login, of as many other bits: no command before it gives them away
	deadline time.Time
	left     int         // bytes of maxTotal that may still come
	id       string      // as Conn.ID
	secure   *tls.Conn   // nil before TLS
	cfg      *tls.Config // of secure
	caps     imap.Caps   // as the backend said last, unknown again behind the start of TLS
	alerts   []Alert     // since the start of TLS; at most maxAlerts
}

func newDialogue(nc net.Conn) *dialogue {
	random := rand.Text() // 26 characters of 5 bits
	return &dialogue{
		conn: imap.NewConn(nc, imap.Responses, maxLine),
		tag:  random[:13],
		last: tagLogin + random[13:],
		left: maxTotal,
	}
}

// renew takes another tag for the login that is tried after try others.
func (d *dialogue) renew(try int) { d.last = string(tagLogin[0]+byte(try)) + rand.Text()[:13] }

// bind makes the dialogue end with ctx and at the deadline.
func (d *dialogue) bind(ctx context.Context, deadline time.Time) (release func() bool) {
	release = d.conn.Bind(ctx)
	d.deadline = deadline
	d.conn.Limit(deadline)
	return release
}

// await gives the backend at least so long from now on, however much of the time
// for the login is left.
func (d *dialogue) await(least time.Duration) {
	if until := time.Now().Add(least); until.After(d.deadline) {
		d.conn.Limit(until)
	}
}

// response reads one response. Literals in it are framed and skipped; Line is
// nil then.
func (d *dialogue) response() (imap.Response, error) {
	s, err := d.segment()
	if err != nil {
		return imap.Response{}, err
	}
	res, err := imap.ParseResponse(s.Bytes[:len(s.Bytes)-len("\r\n")])
	if err != nil {
		return res, fmt.Errorf("%w: %w", errProtocol, err)
	}
	for !s.End {
		res.Line = nil
		if s, err = d.segment(); err != nil {
			return res, err
		}
	}
	return res, nil
}

// segment reads a part of a response within the budget.
func (d *dialogue) segment() (imap.Segment, error) {
	s, err := d.conn.Next()
	if errors.Is(err, imap.ErrLineEnding) || errors.Is(err, imap.ErrLiteral) {
		return s, fmt.Errorf("%w: %w", errProtocol, err)
	}
	if err != nil {
		return s, err
	}
	d.left -= len(s.Bytes)
	if d.left < 0 || s.Literal.Size > int64(d.left) || s.Kind == imap.Part {
		return s, errBudget
	}
	return s, nil
}

// greeting reads the backend's first line.
func (d *dialogue) greeting() error {
	res, err := d.response()
	switch {
	case err != nil:
		return err
	case res.Kind != imap.Untagged:
		return errGreeting
	case res.Name == "OK":
		d.note(res)
		d.heed(res)
		return nil
	}
	if err := farewell(res); err != nil {
		return err
	}
	return errGreeting
}

// note keeps a capability list, which may come in three places (RFC 9051 §7.1,
// §7.2.2).
func (d *dialogue) note(res imap.Response) {
	switch {
	case res.Name == "OK" && res.Code == "CAPABILITY":
		d.caps = imap.ParseCaps(res.Arg)
	case res.Kind == imap.Untagged && res.Name == "CAPABILITY":
		d.caps = imap.ParseCaps(res.Text)
	}
}

// heed keeps an untagged ALERT, which has to reach the user (RFC 9051 §7.1).
func (d *dialogue) heed(res imap.Response) {
	if res.Code != "ALERT" || len(d.alerts) == maxAlerts {
		return
	}
	switch text := clean(res.Text); {
	case text == "":
	case res.Name == "OK", res.Name == "NO", res.Name == "BAD":
		d.alerts = append(d.alerts, Alert{res.Name, text})
	}
}

// farewell is the error an untagged response is in itself. A session that
// begins as PREAUTH is of an unknown user, whenever it is said.
func farewell(res imap.Response) error {
	switch res.Name {
	case "BYE":
		return fmt.Errorf("%w: %s", errGoodbye, Describe(res))
	case "PREAUTH":
		return errPreauth
	}
	return nil
}

// answer reads until the answer to the command tag, which may be a continuation
// request. Of what is untagged before it, only ALERTs can go any further.
func (d *dialogue) answer(tag string) (imap.Response, error) {
	for {
		res, err := d.response()
		if err != nil {
			return res, err
		}
		switch {
		case res.Kind == imap.Continuation:
			return res, nil
		case res.Kind == imap.Tagged && res.Tag == tag:
			return res, nil
		case res.Kind == imap.Tagged:
			return res, errTag
		}
		if err := farewell(res); err != nil {
			return res, err
		}
		d.note(res)
		d.heed(res)
	}
}

// tagged is answer where no continuation request may come.
func (d *dialogue) tagged(tag string) (imap.Response, error) {
	res, err := d.answer(tag)
	if err == nil && res.Kind == imap.Continuation {
		err = errContinue
	}
	return res, err
}

// command sends a command without arguments and reads its answer, OK or not.
func (d *dialogue) command(letter, name string) (imap.Response, error) {
	tag := letter + d.tag
	if _, err := d.conn.Write([]byte(tag + " " + name + "\r\n")); err != nil {
		return imap.Response{}, err
	}
	return d.tagged(tag)
}

// capability asks for the list where it was not given.
func (d *dialogue) capability() error {
	if d.caps.Known() {
		return nil
	}
	res, err := d.command(tagCapability, "CAPABILITY")
	if err != nil {
		return err
	}
	d.note(res)
	if res.Name != "OK" || !d.caps.Known() {
		return errCapability
	}
	return nil
}

// startTLS goes on under TLS, or not at all. Bytes that came before they were
// asked for were written by somebody who could not read the question, and bytes
// behind the OK would be read as if TLS had protected them (RFC 9051 §6.2.1).
func (d *dialogue) startTLS(cfg *tls.Config) error {
	if d.conn.Buffered() > 0 {
		return errEarly
	}
	if err := d.capability(); err != nil {
		return err
	}
	if !d.caps.Has("STARTTLS") {
		return errNoStartTLS
	}
	if d.conn.Buffered() > 0 {
		return errEarly
	}
	res, err := d.command(tagStartTLS, "STARTTLS")
	if err != nil {
		return err
	}
	if res.Name != "OK" {
		return fmt.Errorf("%w: %s", errStartTLS, Describe(res))
	}
	return d.handshake(cfg)
}

// refusedBy is why a dialogue ended, where it was the certificate that the backend was
// shown, or that it was shown none: with TLS 1.3 that comes behind the handshake.
func (d *dialogue) refusedBy(err error) error {
	if d.secure == nil || err == nil {
		return err
	}
	return tlsconf.Refusal(d.secure, d.cfg, err)
}

// handshake goes on under TLS with an empty memory.
func (d *dialogue) handshake(cfg *tls.Config) error {
	var secure *tls.Conn
	err := d.conn.Upgrade(func(nc net.Conn) net.Conn {
		secure = tls.Client(nc, cfg)
		return secure
	})
	if err != nil {
		return err
	}
	d.caps, d.alerts = imap.Caps{}, nil
	d.secure, d.cfg = secure, cfg
	if err := secure.Handshake(); err != nil { // within the dialogue's deadline
		err = tlsconf.Explain(err, cfg)
		return fmt.Errorf("%w: %w", errHandshake, handshakeCause(err, cfg.ServerName))
	}
	return nil
}
