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
	}
	if err := who.appendLogin(&s, d.last, d.caps); err != nil {
		return imap.Response{}, err
	}
	defer func() { clear(s.bytes) }()
	if !onlyUntagged(d.conn.Peek()) {
		return imap.Response{}, errEarly
	}
	from := 0
	for i, end := range s.ends {
		if _, err := d.conn.Write(s.bytes[from:end]); err != nil {
			return imap.Response{}, err
		}
		if withID && i == 0 {
			if _, err := d.tagged(tagID + d.tag); err != nil { // that it is refused changes nothing
				return imap.Response{}, err
			}
		}
		from = end
		res, err := d.answer(d.last)
		done := i == len(s.ends)-1
		switch {
		case err != nil:
			return res, err
		case res.Kind == imap.Tagged && res.Name == "OK" && !done:
			return res, errEarly
		case res.Kind == imap.Tagged:
			return res, nil
		case done:
			return d.dismiss(s.dismissal)
		}
	}
	panic("upstream: a login of no parts")
}

// verdict is the error in the answer to a login.
func (b *Backend) verdict(res imap.Response) error {
	switch {
	case res.Name == "OK":
		return nil
	case res.Name == "BAD":
		return fmt.Errorf("%w: %s", errBad, res.Text)
	case res.Name != "NO":
		return errVerdict
	case res.Code == "", res.Code == "AUTHENTICATIONFAILED", res.Code == "AUTHORIZATIONFAILED":
		if b.cfg.Login == MasterLogin {
			// The client's own password was right: it must not be told that it
			// was wrong, and forget it, because ours is.
			return fmt.Errorf("%w: %s", errMaster, res.Text)
		}
		return ErrDenied
	case !forwardable(res.Code):
		return fmt.Errorf("%w: [%s] %s", errCode, res.Code, res.Text)
	}
	return &Refused{Code: res.Code, Text: clean(res.Text)}
}

// forwardable says whether a response code may be shown to the client: those
// that tell its user something (RFC 5530, RFC 9051 §7.1, RFC 9208) and that no
// client acts upon by connecting or sending anything elsewhere, as on REFERRAL.
func forwardable(code string) bool {
	switch code {
	case "ALERT", "CONTACTADMIN", "EXPIRED", "INUSE", "LIMIT", "NOPERM", "OVERQUOTA",
		"PRIVACYREQUIRED", "SERVERBUG", "UNAVAILABLE":
		return true
	}
	return false
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
