package upstream

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

// maxPassword bounds a password in bytes. In base64 it still fits the 8 KiB that servers read
// as a line.
const maxPassword = 4096

// credentials are what a login sends.
type credentials struct {
	authzid  string // user to act as, if it is not user; SASL only
	user     string
	password identity.Secret
	token    identity.Secret // replaces the password if set
}

// buildCredentials returns the credentials to send. It rejects names and passwords with
// control characters: they could end a line and inject a command or a log line, on this server
// or a later one.
func (b *Backend) buildCredentials(req Request) (credentials, error) {
	name := req.Login
	if name == "" {
		name = req.User.String()
	}
	if req.User.IsZero() || !isSendable(name, identity.MaxUser) {
		return credentials{}, errUnsendable
	}
	if b.cfg.Login != MasterLogin && !req.Token.IsZero() {
		return tokenCredentials(name, req.Token)
	}
	if b.cfg.Login == OAuthLogin {
		return credentials{}, fmt.Errorf("%w: %w", ErrUnavailable, errNoToken)
	}
	c := credentials{user: name, password: req.Password}
	if b.cfg.Login == MasterLogin {
		m := b.cfg.Master
		// The backend splits at the first separator: a name that contains one could choose the
		// master user.
		if strings.Contains(name, m.Separator) {
			return credentials{}, errUnsendable
		}
		password := m.Password.Current()
		c = credentials{authzid: name, user: m.User, password: password}
		if m.Style == SeparatorStyle {
			c = credentials{user: name + m.Separator + m.User, password: password}
		}
		if !isSendable(c.user, 2*identity.MaxUser) || !isSendable(c.password.Reveal(), maxPassword) {
			return credentials{}, fmt.Errorf("%w: master user or password cannot be sent", ErrUnavailable)
		}
	}
	if !isSendable(c.password.Reveal(), maxPassword) { // sent as the client sent it, in any charset
		return credentials{}, errUnsendable
	}
	return c, nil
}

// isSendable reports whether s is not empty, at most maxLen bytes and free of control
// characters.
func isSendable(s string, maxLen int) bool {
	if s == "" || len(s) > maxLen {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] == 0x7f {
			return false
		}
	}
	return true
}

// loginCommand is a command in the parts in which it is sent. The backend requests each part
// after the first.
type loginCommand struct {
	idTag         string // tag of the ID command in front; "": none
	bytes         []byte
	partEnds      []int  // end of each part in bytes; at most three
	finalResponse string // response to a challenge after the last part; "": none is allowed
	challenged    bool   // there was a challenge, so the credentials were understood
}

func newLoginCommand() *loginCommand {
	return &loginCommand{bytes: make([]byte, 0, 512), partEnds: make([]int, 0, 3)}
}

func (cmd *loginCommand) endPart() { cmd.partEnds = append(cmd.partEnds, len(cmd.bytes)) }

// appendLogin appends the login in form f: base64 in one line, base64 on request, or literals.
// Credentials are never sent as quoted strings.
func (c credentials) appendLogin(cmd *loginCommand, f loginForm, lc *loginConn) error {
	switch {
	case f == formLogin:
		c.appendLiterals(cmd, lc)
		return nil
	case !c.token.IsZero():
		return c.appendBearer(cmd, f, lc)
	}
	mechanism, response, err := sasl.NewPlainClient(c.authzid, c.user, c.password.Reveal()).Start()
	if err != nil {
		return err
	}
	cmd.appendSASL(lc.loginTag+" AUTHENTICATE "+mechanism, response, f)
	return nil
}

// appendLiterals appends LOGIN.
func (c credentials) appendLiterals(cmd *loginCommand, lc *loginConn) {
	password := c.password.Reveal()
	// RFC 7888 §5: LITERAL- allows up to 4096 octets.
	lit := imap.Literal{NonSync: lc.caps.Has("LITERAL+") || lc.caps.Has("LITERAL-") && max(len(c.user), len(password)) <= 4096}
	cmd.bytes = append(append(cmd.bytes, lc.loginTag...), " LOGIN "...)
	cmd.bytes = imap.AppendLiteral(cmd.bytes, c.user, lit)
	if !lit.NonSync {
		cmd.endPart()
	}
	cmd.bytes = append(append(cmd.bytes, c.user...), ' ')
	cmd.bytes = imap.AppendLiteral(cmd.bytes, password, lit)
	if !lit.NonSync {
		cmd.endPart()
	}
	cmd.bytes = append(append(cmd.bytes, password...), '\r', '\n')
	cmd.endPart()
}

// appendSASL appends an AUTHENTICATE command with a mechanism of one message, and clears
// response.
func (cmd *loginCommand) appendSASL(command string, response []byte, f loginForm) {
	cmd.bytes = append(cmd.bytes, command...)
	if f == formInitialResponse {
		cmd.bytes = append(cmd.bytes, ' ')
	} else {
		cmd.bytes = append(cmd.bytes, '\r', '\n')
		cmd.endPart()
	}
	cmd.bytes = base64.StdEncoding.AppendEncode(cmd.bytes, response)
	cmd.bytes = append(cmd.bytes, '\r', '\n')
	cmd.endPart()
	clear(response)
}
