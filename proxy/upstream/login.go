package upstream

import (
	"time"

	"imapgate/internal/imap"
)

// prepareLogin brings the dialogue to where a login may be sent: who we speak for where
// that comes first, TLS, the greeting, and a capability list that can be relied
// on.
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
	if b.cfg.TLSMode == ImplicitTLS {
		if err := lc.handshakeTLS(b.cfg.clientTLS()); err != nil {
			return err
		}
	}
	if err := lc.readGreeting(); err != nil {
		return err
	}
	if b.cfg.TLSMode == StartTLS {
		if err := lc.startTLS(b.cfg.clientTLS()); err != nil {
			return err
		}
	}
	return lc.requireCaps()
}

// sendLogin sends a script and reads the tagged answer to it. sent says whether the
// credentials, which are in the last part, went out: also where there is an error.
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

// sendPart sends a part of the login and reads the answer to it, which may ask for the
// next. The answer to the command id, where there is one in front, changes nothing.
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

// refreshCaps makes sure of the capability list behind the login, which is another
// than before it. What else the backend says meanwhile is the client's.
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
