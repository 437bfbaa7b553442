package upstream

import (
	"time"

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
		if err := d.handshake(b.cfg.clientTLS()); err != nil {
			return err
		}
	}
	if err := d.greeting(); err != nil {
		return err
	}
	if b.cfg.TLSMode == StartTLS {
		if err := d.startTLS(b.cfg.clientTLS()); err != nil {
			return err
		}
	}
	return d.capability()
}

// perform sends a script and reads the tagged answer to it. sent says whether the
// credentials, which are in the last part, went out: also where there is an error.
func (d *dialogue) perform(s *script, least time.Duration) (res imap.Response, sent bool, err error) {
	defer func() { clear(s.bytes) }()
	if !onlyUntagged(d.conn.Peek()) {
		return res, false, errEarly
	}
	from, id := 0, s.id
	last := len(s.ends) - 1
	for _, end := range s.ends[:last] {
		res, err := d.part(s.bytes[from:end], id)
		switch {
		case err != nil:
			return res, false, err
		case res.Kind == imap.Tagged && res.Name == "OK":
			return res, false, errEarly
		case res.Kind == imap.Tagged:
			return res, false, nil
		}
		from, id = end, ""
	}
	d.await(least)
	res, err = d.part(s.bytes[from:], id)
	if err == nil && res.Kind != imap.Tagged {
		s.judged = true
		res, err = d.dismiss(res.Text, s.dismissal)
	}
	return res, true, err
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
