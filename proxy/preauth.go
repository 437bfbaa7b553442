package proxy

import (
	"context"
	"errors"
	"time"

	"imapgate/auth"
	"imapgate/internal/audit"
	"imapgate/internal/imap"
)

// said is what a client has told us before its login. What was said in the
// clear is forgotten when TLS starts.
type said struct {
	askedCaps bool        // CAPABILITY: it is told again, untagged, with the login
	asked     bool        // ID was heard; only the first counts
	id        [][2]string // its own name, version and so on
	via       string      // x-session-id
	ttl       int         // x-proxy-ttl
	itself    bool        // x-originating-ip of a trusted peer: that it speaks for itself
}

// offer is the capability list before the login: what the gateway does itself.
func (s *session) offer() string {
	if s.listener.TLS == StartTLS && s.tls == nil {
		return "IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED"
	}
	client := s.client()
	list := "IMAP4rev1 LITERAL+ SASL-IR ID"
	if !s.server.rooms.Auth.TakesPasswords(client) {
		list += " LOGINDISABLED"
	}
	for _, m := range s.server.rooms.Auth.Mechanisms(client) {
		list += " AUTH=" + m
	}
	return list
}

// inTheClear says whether TLS must come before anything secret.
func (s *session) inTheClear() bool { return s.listener.TLS != NoTLS && s.tls == nil }

func (s *session) greet() error {
	return s.send("* OK [CAPABILITY " + s.offer() + "] IMAP ready.")
}

// send writes one line, or several joined by CRLF.
func (s *session) send(line string) error {
	s.out = append(append(s.out[:0], line...), '\r', '\n')
	_, err := s.conn.Write(s.out)
	return err
}

// say answers the command of tag.
func (s *session) say(tag, answer string) error { return s.send(tag + " " + answer) }

// readLogin answers commands until one is an attempt to log in.
func (s *session) readLogin(ctx context.Context) (*attempt, error) {
	for {
		cmd, err := s.conn.ReadCommand(imap.BeforeLogin, s.proceed)
		if err == nil {
			var login *attempt
			login, err = s.command(ctx, cmd)
			if login != nil {
				login.began = time.Now() // its last byte: a denial's time is ours, not the client's
				return login, nil
			}
		} else {
			s.spoke = s.spoke || cmd.Tag != "" // cut off behind its first line
			err = s.faulty(cmd, err)
		}
		if err != nil {
			return nil, err
		}
	}
}

var errCleartext = errors.New("literal before TLS")

// proceed asks for a literal's octets, except in the clear: there the next
// literal is a password.
func (s *session) proceed() error {
	if s.inTheClear() {
		return errCleartext
	}
	s.spoke = true
	return s.send("+ OK")
}

// faulty answers what is no command. The connection goes on where the stream is
// still in step.
func (s *session) faulty(cmd imap.Command, err error) error {
	var syntax *imap.SyntaxError
	switch {
	case strangers[cmd.Tag]:
		return &ending{audit.WrongProtocol, "", nil}
	case errors.Is(err, imap.ErrLost):
		return &ending{audit.LiteralTooBig, "Literal refused.", nil}
	case errors.Is(err, imap.ErrLineTooLong):
		return &ending{audit.LineTooLong, "Line too long.", nil}
	case errors.Is(err, imap.ErrLineSkipped):
		return s.tooLong(cmd)
	case errors.Is(err, imap.ErrLineEnding):
		return s.badCommand(cmd.Tag, "BAD Lines end in CRLF.")
	case errors.Is(err, errCleartext):
		return s.needTLS(cmd)
	case errors.Is(err, imap.ErrTooBig):
		return s.badCommand(cmd.Tag, "NO [TOOBIG] Literal too large.")
	case errors.As(err, &syntax) && syntax.Tag == "":
		return s.badCommand("*", "BAD "+syntax.Text)
	case errors.As(err, &syntax):
		return s.badCommand(syntax.Tag, "BAD "+syntax.Text)
	}
	return err
}

// tooLong answers a command whose line was read past. A token that is too long is
// no guess, and was not looked at.
func (s *session) tooLong(cmd imap.Command) error {
	switch {
	case cmd.Name != "AUTHENTICATE":
		return s.badCommand(cmd.Tag, "BAD Line too long.")
	case s.inTheClear():
		return s.needTLS(cmd)
	}
	return s.badCommand(cmd.Tag, tooLongReply)
}

// strangers are the first words of other protocols: a browser made to talk to
// us gets not one word back.
var strangers = map[string]bool{
	"GET": true, "POST": true, "PUT": true, "HEAD": true, "OPTIONS": true, "CONNECT": true, "DELETE": true,
	"PATCH": true, "TRACE": true, "PRI": true, "EHLO": true, "HELO": true,
}

// badCommand answers and counts a command that is none, or has no place here.
func (s *session) badCommand(tag, answer string) error {
	if err := s.say(tag, answer); err != nil {
		return err
	}
	if s.bad++; s.bad >= s.server.cfg.BadCommands {
		return &ending{audit.BadCommands, "Too many bad commands.", nil}
	}
	return nil
}

// command answers one command; a login attempt is returned instead.
func (s *session) command(ctx context.Context, cmd imap.Command) (*attempt, error) {
	if strangers[cmd.Tag] {
		return nil, &ending{audit.WrongProtocol, "", nil}
	}
	switch cmd.Name {
	case "CAPABILITY", "STARTTLS", "LOGOUT":
		s.looked = true
	default:
		s.spoke = true
	}
	switch cmd.Name {
	case "LOGIN":
		return s.login(cmd)
	case "AUTHENTICATE":
		return s.authenticate(ctx, cmd)
	case "ID":
		if err := s.id(cmd); err != nil {
			return nil, err
		}
		return nil, s.visitMoves()
	}
	if len(cmd.Args) > 0 {
		return nil, s.badCommand(cmd.Tag, "BAD Unexpected argument, or unknown command.")
	}
	switch cmd.Name {
	case "CAPABILITY":
		s.said.askedCaps = true
		return nil, s.send("* CAPABILITY " + s.offer() + "\r\n" + cmd.Tag + " OK Capabilities listed.")
	case "NOOP":
		return nil, s.say(cmd.Tag, "OK Nothing done.")
	case "LOGOUT":
		return nil, s.logout(cmd.Tag)
	case "STARTTLS":
		return nil, s.startTLS(cmd.Tag)
	}
	return nil, s.badCommand(cmd.Tag, "BAD Unknown command, or not before the login.")
}

func (s *session) logout(tag string) error {
	if err := s.send("* BYE Logging out.\r\n" + tag + " OK Logged out."); err != nil {
		return err
	}
	return &ending{audit.ClientLogout, "", nil}
}

// startTLS begins TLS, and forgets what was said in the clear. Bytes behind the
// command were put there by somebody in between: the connection ends.
func (s *session) startTLS(tag string) error {
	if s.listener.TLS != StartTLS || s.tls != nil {
		return s.badCommand(tag, "BAD TLS is not to be started here.")
	}
	if s.conn.Buffered() > 0 || s.socket.Buffered() > 0 {
		return &ending{audit.StartTLSInjection, "", imap.ErrInjected}
	}
	if err := s.say(tag, "OK Begin TLS negotiation now."); err != nil {
		return err
	}
	s.said, s.who.Claimed = said{}, s.balanced
	s.who.Program, s.who.Version = "", ""
	if err := s.visitMoves(); err != nil {
		return err
	}
	return s.handshake()
}

// needTLS refuses a login in the clear. It says nothing about the user, and
// counts against the connection: a password may have gone over the wire.
func (s *session) needTLS(cmd imap.Command) error {
	if cmd.Name != "LOGIN" && cmd.Name != "AUTHENTICATE" {
		return s.badCommand(cmd.Tag, "BAD No literals before TLS.")
	}
	a := &attempt{tag: cmd.Tag, began: time.Now(), login: auth.Login{Mechanism: auth.CommandLogin}}
	if cmd.Name == "AUTHENTICATE" {
		a.login.Mechanism = mechanismName("")
		if len(cmd.Args) > 0 {
			a.login.Mechanism = mechanismName(cmd.Args[0].Text)
		}
	}
	s.recordRefusal(a, refusal{result: refused, reason: audit.Cleartext}, nil)
	return s.badCommand(cmd.Tag, "NO [PRIVACYREQUIRED] STARTTLS must come first.")
}
