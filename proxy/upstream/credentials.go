package upstream

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

// maxPassword bounds a password in bytes; in base64 it still fits the 8 KiB
// that servers take for a line.
const maxPassword = 4096

// credentials are what one login sends.
type credentials struct {
	authzid  string // whom to act as, where it is not user; SASL only
	user     string
	password identity.Secret
	token    identity.Secret // when there is one it goes, and no password
}

// credentials decides what to send, or refuses: a name or a password with
// control characters could end a line and begin a command (or a log line) of
// its own choosing, on this server or on one behind it.
func (b *Backend) credentials(who Request) (credentials, error) {
	name := who.Login
	if name == "" {
		name = who.User.String()
	}
	if who.User.IsZero() || !sendable(name, identity.MaxUser) {
		return credentials{}, errUnsendable
	}
	if b.cfg.Login != MasterLogin && !who.Token.IsZero() {
		return bearing(name, who.Token)
	}
	if b.cfg.Login == OAuthLogin {
		return credentials{}, fmt.Errorf("%w: %w", ErrUnavailable, errNoToken)
	}
	c := credentials{user: name, password: who.Password}
	if b.cfg.Login == MasterLogin {
		m := b.cfg.Master
		// The backend splits at the first separator it sees: a name that holds
		// one would choose the master itself.
		if strings.Contains(name, m.Separator) {
			return credentials{}, errUnsendable
		}
		password := m.Password.Now()
		c = credentials{authzid: name, user: m.User, password: password}
		if m.Style == SeparatorStyle {
			c = credentials{user: name + m.Separator + m.User, password: password}
		}
		if !sendable(c.user, 2*identity.MaxUser) || !sendable(c.password.Reveal(), maxPassword) {
			return credentials{}, fmt.Errorf("%w: master user or password cannot be sent", ErrUnavailable)
		}
	}
	if !sendable(c.password.Reveal(), maxPassword) { // otherwise it goes out as the client sent it, in whatever charset
		return credentials{}, errUnsendable
	}
	return c, nil
}

// sendable says whether s is neither empty nor too long and free of control
// characters.
func sendable(s string, most int) bool {
	if s == "" || len(s) > most {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// script is a command in the parts in which it is sent: behind each part but
// the last, the backend asks for the next one.
type script struct {
	id        string // tag of the ID command in front; "": there is none
	bytes     []byte
	ends      []int  // of each part in bytes; at most three
	dismissal string // answers a challenge behind the last part; "": there must be none
	judged    bool   // there was one, so the credentials were understood
}

func newScript() *script { return &script{bytes: make([]byte, 0, 512), ends: make([]int, 0, 3)} }

func (s *script) wait() { s.ends = append(s.ends, len(s.bytes)) }

// appendLogin appends the login in one of its forms, as the last command of d: base64
// in one line, base64 when asked for, or literals. Nothing of the credentials is ever
// quoted.
func (c credentials) appendLogin(s *script, f form, d *dialogue) error {
	switch {
	case f == formLogin:
		c.appendLiterals(s, d)
		return nil
	case !c.token.IsZero():
		return c.appendBearer(s, f, d)
	}
	mechanism, response, err := sasl.NewPlainClient(c.authzid, c.user, c.password.Reveal()).Start()
	if err != nil {
		return err
	}
	s.appendSASL(d.last+" AUTHENTICATE "+mechanism, response, f)
	return nil
}

// appendLiterals appends LOGIN.
func (c credentials) appendLiterals(s *script, d *dialogue) {
	password := c.password.Reveal()
	// RFC 7888 §5: LITERAL- is for up to 4096 octets.
	lit := imap.Literal{NonSync: d.caps.Has("LITERAL+") || d.caps.Has("LITERAL-") && max(len(c.user), len(password)) <= 4096}
	s.bytes = append(append(s.bytes, d.last...), " LOGIN "...)
	s.bytes = imap.AppendLiteral(s.bytes, c.user, lit)
	if !lit.NonSync {
		s.wait()
	}
	s.bytes = append(append(s.bytes, c.user...), ' ')
	s.bytes = imap.AppendLiteral(s.bytes, password, lit)
	if !lit.NonSync {
		s.wait()
	}
	s.bytes = append(append(s.bytes, password...), '\r', '\n')
	s.wait()
}

// appendSASL appends an AUTHENTICATE command with a mechanism of one message, of
// which no copy is left.
func (s *script) appendSASL(command string, response []byte, f form) {
	s.bytes = append(s.bytes, command...)
	if f == formAtOnce {
		s.bytes = append(s.bytes, ' ')
	} else {
		s.bytes = append(s.bytes, '\r', '\n')
		s.wait()
	}
	s.bytes = base64.StdEncoding.AppendEncode(s.bytes, response)
	s.bytes = append(s.bytes, '\r', '\n')
	s.wait()
	clear(response)
}
