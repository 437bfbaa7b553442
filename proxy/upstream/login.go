package upstream

import (
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
)

// prepareLogin does what comes before a login: PROXY header, TLS, greeting, STARTTLS and a
// trustworthy capability list.
func (b *Backend) prepareLogin(lc *loginConn, c Client) error {
	if b.cfg.Forward == ForwardProxy {
		header, err := proxyHeader(c)
		if err != nil {
			return err
		}
		if _, err := lc.conn.Write(header); err != nil {
			return err
		}
	}
	if b.cfg.TLS == event.ImplicitTLS {
		if err := lc.handshakeTLS(b.cfg.clientTLS()); err != nil {
			return err
		}
	}
	if err := lc.readGreeting(); err != nil {
		return err
	}
	if b.cfg.TLS == event.StartTLS {
		if err := lc.startTLS(b.cfg.clientTLS()); err != nil {
			return err
		}
	}
	return lc.requireCaps()
}

// sendLogin sends a login and reads its tagged answer. sent reports whether the credentials,
// which are in the last part, were sent, also if there is an error.
func (c *loginConn) sendLogin(cmd *loginCommand, minWait time.Duration) (res imap.Response, sent bool, err error) {
	defer func() { clear(cmd.bytes) }()
	if !isOnlyUntagged(c.conn.Peek()) {
		return res, false, errUnsolicited
	}
	from, idTag := 0, cmd.idTag
	last := len(cmd.partEnds) - 1
	for _, end := range cmd.partEnds[:last] {
		res, err := c.sendPart(cmd.bytes[from:end], idTag)
		switch {
		case err != nil:
			return res, false, err
		case res.Kind == imap.Tagged && res.Name == "OK":
			return res, false, errUnsolicited
		case res.Kind == imap.Tagged:
			return res, false, nil
		}
		from, idTag = end, ""
	}
	c.extendDeadline(minWait)
	res, err = c.sendPart(cmd.bytes[from:], idTag)
	if err == nil && res.Kind != imap.Tagged {
		cmd.challenged = true
		res, err = c.finishRefusal(res.Text, cmd.finalResponse)
	}
	return res, true, err
}

// sendPart sends a part of the login and reads the answer, which may request the next part.
// idTag is the tag of the ID command in front, whose answer is ignored; "" without one.
func (c *loginConn) sendPart(bytes []byte, idTag string) (imap.Response, error) {
	if _, err := c.conn.Write(bytes); err != nil {
		return imap.Response{}, err
	}
	if idTag != "" {
		if _, err := c.readTagged(idTag); err != nil {
			return imap.Response{}, err
		}
	}
	return c.readAnswer(c.loginTag)
}

// refreshCaps obtains the capability list after the login, which differs from the one before.
// It returns the other untagged responses, which are for the client.
func (c *loginConn) refreshCaps(ok imap.Response) (untagged []byte, err error) {
	c.caps = imap.Caps{}
	if c.recordCaps(ok); c.caps.IsKnown() {
		return nil, nil
	}
	tag := tagCapsAfterLogin + c.tagSuffix
	if _, err := c.conn.Write([]byte(tag + " CAPABILITY\r\n")); err != nil {
		return nil, err
	}
	for {
		res, err := c.readResponse()
		switch {
		case err != nil:
			return nil, err
		case res.Kind == imap.Continuation:
			return nil, errContinuation
		case res.Kind == imap.Tagged && res.Tag != tag:
			return nil, errWrongTag
		case res.Kind == imap.Tagged:
			c.recordCaps(res)
			if !c.caps.IsKnown() {
				return nil, errCapability
			}
			return untagged, nil
		case res.Name == "CAPABILITY":
			c.recordCaps(res)
		case res.Line == nil: // it had a literal
			return nil, errAfterLogin
		default:
			untagged = append(append(untagged, res.Line...), '\r', '\n')
		}
		if err := untaggedError(res); err != nil {
			return nil, err
		}
	}
}
