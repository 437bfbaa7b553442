package proxy

import (
	"context"
	"errors"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/proxy/login"
	"imapgate/proxy/relay"
)

// preauthState holds the client's input before its login. STARTTLS clears it.
type preauthState struct {
	repeatCaps    bool        // the client sent CAPABILITY: repeat the list untagged with the login
	idReceived    bool        // only the first ID counts
	clientID      [][2]string // client's own ID parameters
	parentSession string      // x-session-id
	proxyTTL      int         // x-proxy-ttl
	peerIsClient  bool        // x-originating-ip of a trusted peer names the peer itself
}

// capabilities returns the capability list before the login: what the gateway itself
// supports.
func (c *connection) capabilities() string {
	if c.listener.TLS == event.StartTLS && c.tls == nil {
		return "IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED"
	}
	client := c.authClient()
	list := "IMAP4rev1 LITERAL+ SASL-IR ID"
	if !c.server.deps.Auth.AllowsPasswords(client) {
		list += " LOGINDISABLED"
	}
	for _, m := range c.server.deps.Auth.Mechanisms(client) {
		list += " AUTH=" + m
	}
	return list
}

// isCleartext reports whether TLS must start before credentials are accepted.
func (c *connection) isCleartext() bool { return c.listener.TLS != event.NoTLS && c.tls == nil }

// sendLine writes one line, or several joined by CRLF.
func (c *connection) sendLine(line string) error {
	c.outBuf = append(append(c.outBuf[:0], line...), '\r', '\n')
	_, err := c.conn.Write(c.outBuf)
	return err
}

// readLogin answers commands until one is a login attempt.
func (c *connection) readLogin(ctx context.Context) (*login.Attempt, error) {
	for {
		cmd, err := c.conn.ReadCommand(imap.PreauthLimits, c.requestLiteral)
		if foreignProtocols[cmd.Tag] {
			return nil, &relay.CloseError{Reason: event.WrongProtocol}
		}
		if err == nil {
			var a *login.Attempt
			a, err = c.answerCommand(ctx, cmd)
			if a != nil {
				a.ReceivedAt = time.Now() // the last byte: the client's own delay does not shorten a denial
				return a, nil
			}
		} else {
			c.sentOtherCommand = c.sentOtherCommand || cmd.Tag != "" // command cut off after its first line
			err = c.answerMalformed(cmd, err)
		}
		if err != nil {
			return nil, err
		}
	}
}

var errCleartext = errors.New("literal before TLS")

// requestLiteral requests a literal, except without TLS, where the next literal may be a
// password.
func (c *connection) requestLiteral() error {
	if c.isCleartext() {
		return errCleartext
	}
	c.sentOtherCommand = true
	return c.sendLine("+ OK")
}

// answerMalformed answers an invalid command. The connection continues if the stream is
// still in sync.
func (c *connection) answerMalformed(cmd imap.Command, err error) error {
	var syntax *imap.SyntaxError
	switch {
	case errors.Is(err, imap.ErrDesynced):
		return &relay.CloseError{Reason: event.LiteralTooBig, Bye: "Literal refused."}
	case errors.Is(err, imap.ErrLineTooLong):
		return &relay.CloseError{Reason: event.LineTooLong, Bye: "Line too long."}
	case errors.Is(err, imap.ErrLineSkipped):
		return c.answerLongLine(cmd)
	case errors.Is(err, imap.ErrLineEnding):
		return c.rejectCommand(cmd.Tag, "BAD Lines end in CRLF.")
	case errors.Is(err, errCleartext):
		return c.rejectCleartext(cmd)
	case errors.Is(err, imap.ErrLiteralTooBig):
		return c.rejectCommand(cmd.Tag, "NO [TOOBIG] Literal too large.")
	case errors.As(err, &syntax) && syntax.Tag == "":
		return c.rejectCommand("*", "BAD "+syntax.Text)
	case errors.As(err, &syntax):
		return c.rejectCommand(syntax.Tag, "BAD "+syntax.Text)
	}
	return err
}

// answerLongLine answers a command whose line was skipped. A token that is too long is not
// a guess: it was not read.
func (c *connection) answerLongLine(cmd imap.Command) error {
	switch {
	case cmd.Name != "AUTHENTICATE":
		return c.rejectCommand(cmd.Tag, "BAD Line too long.")
	case c.isCleartext():
		return c.rejectCleartext(cmd)
	}
	return c.rejectCommand(cmd.Tag, login.TooLongReply)
}

// foreignProtocols are the first words of other protocols. A browser that was tricked into
// connecting gets no answer at all.
var foreignProtocols = map[string]bool{
	"GET": true, "POST": true, "PUT": true, "HEAD": true, "OPTIONS": true, "CONNECT": true, "DELETE": true,
	"PATCH": true, "TRACE": true, "PRI": true, "EHLO": true, "HELO": true,
}

// rejectCommand answers and counts an invalid or misplaced command.
func (c *connection) rejectCommand(tag, answer string) error {
	if err := c.sendLine(tag + " " + answer); err != nil {
		return err
	}
	if c.badCommands++; c.badCommands >= c.server.cfg.MaxBadCommands {
		return &relay.CloseError{Reason: event.BadCommands, Bye: "Too many bad commands."}
	}
	return nil
}

// answerCommand answers one command, or returns a login attempt.
func (c *connection) answerCommand(ctx context.Context, cmd imap.Command) (*login.Attempt, error) {
	switch cmd.Name {
	case "CAPABILITY", "STARTTLS", "LOGOUT":
		c.sentProbeCommand = true
	default:
		c.sentOtherCommand = true
	}
	switch cmd.Name {
	case "LOGIN":
		return c.parseLogin(cmd)
	case "AUTHENTICATE":
		return c.authenticate(ctx, cmd)
	case "ID":
		if err := c.answerID(cmd); err != nil {
			return nil, err
		}
		return nil, c.updateLimits()
	}
	if len(cmd.Args) > 0 {
		return nil, c.rejectCommand(cmd.Tag, "BAD Unexpected argument, or unknown command.")
	}
	switch cmd.Name {
	case "CAPABILITY":
		c.preauth.repeatCaps = true
		return nil, c.sendLine("* CAPABILITY " + c.capabilities() + "\r\n" + cmd.Tag + " OK Capabilities listed.")
	case "NOOP":
		return nil, c.sendLine(cmd.Tag + " OK Nothing done.")
	case "LOGOUT":
		return nil, c.answerLogout(cmd.Tag)
	case "STARTTLS":
		return nil, c.startTLS(cmd.Tag)
	}
	return nil, c.rejectCommand(cmd.Tag, "BAD Unknown command, or not before the login.")
}

func (c *connection) answerLogout(tag string) error {
	if err := c.sendLine("* BYE Logging out.\r\n" + tag + " OK Logged out."); err != nil {
		return err
	}
	return &relay.CloseError{Reason: event.ClientLogout}
}

// startTLS starts TLS and clears what the client sent before it. Bytes after the command
// were injected on the way: the connection ends.
func (c *connection) startTLS(tag string) error {
	if c.listener.TLS != event.StartTLS || c.tls != nil {
		return c.rejectCommand(tag, "BAD TLS is not to be started here.")
	}
	if c.conn.Buffered() > 0 || c.socket.Buffered() > 0 {
		return &relay.CloseError{Reason: event.StartTLSInjection, Err: imap.ErrInjected}
	}
	if err := c.sendLine(tag + " OK Begin TLS negotiation now."); err != nil {
		return err
	}
	c.preauth, c.client.Record.Addr = preauthState{}, c.proxiedAddr
	c.client.Record.Program, c.client.Record.Version = "", ""
	if err := c.updateLimits(); err != nil {
		return err
	}
	return c.upgradeTLS()
}

// rejectCleartext refuses a login without TLS. The answer reveals nothing about the user.
// It counts as a bad command: a password may have been sent in the clear.
func (c *connection) rejectCleartext(cmd imap.Command) error {
	if cmd.Name != "LOGIN" && cmd.Name != "AUTHENTICATE" {
		return c.rejectCommand(cmd.Tag, "BAD No literals before TLS.")
	}
	a := &login.Attempt{Tag: cmd.Tag, ReceivedAt: time.Now(), Login: auth.Login{Mechanism: auth.CommandLogin}}
	if cmd.Name == "AUTHENTICATE" {
		a.Login.Mechanism = mechanismName("")
		if len(cmd.Args) > 0 {
			a.Login.Mechanism = mechanismName(cmd.Args[0].Text)
		}
	}
	return c.rejectAttempt(a, event.Cleartext, "NO [PRIVACYREQUIRED] STARTTLS must come first.")
}
