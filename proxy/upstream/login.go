package upstream

import (
	"fmt"

	"imapgate/internal/imap"
)

// open brings the dialogue to where a login may be sent: who we speak for where
// that comes first, TLS, the greeting, and a capability list that can be relied
// on.
func (b *Backend) open(d *dialogue, c Client) error {
	if b.cfg.Forward == ForwardProxy {
		header, err := proxyHeader(c)
		if err != nil {
			return err
		}
		if _, err := d.conn.Write(header); err != nil {
			return err
		}
	}
	if b.cfg.TLSMode == ImplicitTLS {
		if err := d.handshake(b.cfg.TLS); err != nil {
			return err
		}
	}
	if err := d.greeting(); err != nil {
		return err
	}
	if b.cfg.TLSMode == StartTLS {
		if err := d.startTLS(b.cfg.TLS); err != nil {
			return err
		}
	}
	return d.capability()
}

// authenticate sends ID and the login, in one write as far as the backend need
// not be heard in between, and returns its tagged answer to the login.
func (b *Backend) authenticate(d *dialogue, who credentials, c Client) (imap.Response, error) {
	s := script{bytes: make([]byte, 0, 512), ends: make([]int, 0, 3)}
	withID := d.caps.Has("ID")
	if withID {
		s.bytes = b.appendID(s.bytes, tagID+d.tag, c, b.hops(c)-1)
		d.id = c.OwnID()
	}
	if err := who.appendLogin(&s, d.last, d.caps); err != nil {
		return imap.Response{}, err
	}
	defer func() { clear(s.bytes) }()
	if !onlyUntagged(d.conn.Peek()) {
		return imap.Response{}, errEarly
	}
	from, id := 0, ""
	if withID {
		id = tagID + d.tag
	}
	last := len(s.ends) - 1
	for _, end := range s.ends[:last] {
		res, err := d.part(s.bytes[from:end], id)
		switch {
		case err != nil:
			return res, err
		case res.Kind == imap.Tagged && res.Name == "OK":
			return res, errEarly
		case res.Kind == imap.Tagged:
			return res, nil
		}
		from, id = end, ""
	}
	d.await(b.cfg.AnswerTimeout)
	res, err := d.part(s.bytes[from:], id) // the secret is in the last part
	if err == nil && res.Kind != imap.Tagged {
		res, err = d.dismiss(res.Text, s.dismissal)
	}
	if err != nil {
		return res, fmt.Errorf("%w: %w", errUnanswered, err)
	}
	return res, nil
}

// part sends a part of the login and reads the answer to it, which may ask for the
// next. The answer to the command id, where there is one in front, changes nothing.
func (d *dialogue) part(bytes []byte, id string) (imap.Response, error) {
	if _, err := d.conn.Write(bytes); err != nil {
		return imap.Response{}, err
	}
	if id != "" {
		if _, err := d.tagged(id); err != nil {
			return imap.Response{}, err
		}
	}
	return d.answer(d.last)
}

// after makes sure of the capability list behind the login, which is another
// than before it. What else the backend says meanwhile is the client's.
func (d *dialogue) after(ok imap.Response) (kept []byte, err error) {
	d.caps = imap.Caps{}
	if d.note(ok); d.caps.Known() {
		return nil, nil
	}
	tag := tagAfter + d.tag
	if _, err := d.conn.Write([]byte(tag + " CAPABILITY\r\n")); err != nil {
		return nil, err
	}
	for {
		res, err := d.response()
		switch {
		case err != nil:
			return nil, err
		case res.Kind == imap.Continuation:
			return nil, errContinue
		case res.Kind == imap.Tagged && res.Tag != tag:
			return nil, errTag
		case res.Kind == imap.Tagged:
			d.note(res)
			if !d.caps.Known() {
				return nil, errCapability
			}
			return kept, nil
		case res.Name == "CAPABILITY":
			d.note(res)
		case res.Line == nil: // it had a literal
			return nil, errBehind
		default:
			kept = append(append(kept, res.Line...), '\r', '\n')
		}
		if err := farewell(res); err != nil {
			return nil, err
		}
	}
}
