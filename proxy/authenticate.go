package proxy

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/proxy/login"
)

// authClient describes this connection to package auth.
func (c *connection) authClient() *auth.Client {
	info := &auth.Client{
		Session: c.client.Record.Session, Listener: c.listener.Name, Addr: c.client.Addr(), Peer: c.client.Record.Peer,
		Local: addrPort(c.socket.LocalAddr()), ProxyHeader: c.proxyInfo, ServedCertificate: c.serverCert,
	}
	if c.tls != nil {
		state := c.tls.ConnectionState()
		info.TLS = &state
	}
	return info
}

// parseLogin parses LOGIN (RFC 9051 §6.2.3): two strings.
func (c *connection) parseLogin(cmd imap.Command) (*login.Attempt, error) {
	if c.isCleartext() {
		return nil, c.rejectCleartext(cmd)
	}
	if len(cmd.Args) != 2 || !cmd.Args[0].IsString() || !cmd.Args[1].IsString() {
		return nil, c.rejectCommand(cmd.Tag, "BAD LOGIN takes a user name and a password.")
	}
	a := c.client.Begin(cmd.Tag, c.authClient())
	a.Login.Mechanism, a.Login.Password = auth.CommandLogin, identity.NewSecret(cmd.Args[1].Text)
	a.Login.User, a.Presented, a.Err = c.server.deps.Auth.ReadPasswordLogin(cmd.Args[0].Text, a.Login.Password)
	if !c.server.deps.Auth.AllowsPasswords(a.Login.Client) {
		return nil, c.rejectAttempt(a, event.BadMechanism, "NO LOGIN is disabled.")
	}
	return a, nil
}

// authenticate handles AUTHENTICATE (RFC 9051 §6.2.2) with an optional initial response
// (RFC 4959).
func (c *connection) authenticate(ctx context.Context, cmd imap.Command) (*login.Attempt, error) {
	if c.isCleartext() {
		return nil, c.rejectCleartext(cmd)
	}
	if n := len(cmd.Args); n < 1 || n > 2 || cmd.Args[0].Kind != imap.Atom || cmd.Args[n-1].Kind != imap.Atom {
		return nil, c.rejectCommand(cmd.Tag, "BAD AUTHENTICATE takes a mechanism and at most one response.")
	}
	a := c.client.Begin(cmd.Tag, c.authClient())
	client := a.Login.Client
	exchange, ok := c.server.deps.Auth.Start(cmd.Args[0].Text, client)
	if !ok {
		a.Login.Mechanism = mechanismName(cmd.Args[0].Text)
		return nil, c.rejectAttempt(a, event.BadMechanism, "NO Unsupported mechanism.")
	}
	a.Login.Mechanism = exchange.Mechanism()
	var response []byte // nil: no initial response
	if len(cmd.Args) == 2 {
		var err error
		if response, err = decodeResponse(cmd.Args[1].Text); err != nil {
			return nil, c.rejectAttempt(a, event.BadExchange, "BAD Invalid base64.")
		}
	}
	for {
		if a.Err = c.server.logins.CheckLookup(ctx, &c.client, a, response); a.Err != nil {
			return a, nil
		}
		challenge, done, err := exchange.Next(ctx, response)
		a.Presented = exchange.PresentedLogin()
		if err != nil || done {
			a.Presented.User = cmp.Or(a.Presented.User, a.Login.User)
			a.Login, a.Err, a.FinalChallenge = exchange.Login(), err, challenge
			a.Login.Client, a.Login.Mechanism = client, exchange.Mechanism()
			return a, nil
		}
		line, err := c.challengeClient(challenge, responseLimits(a.Login.Mechanism))
		if err != nil {
			result, reason := exchangeFailure(ctx, err)
			c.server.logins.RecordInvalid(&c.client, a, result, reason)
			return nil, c.answerMalformed(cmd, err)
		}
		if line == "*" {
			return nil, c.rejectAttempt(a, event.BadExchange, "BAD Cancelled.")
		}
		if response, err = decodeResponse(line); err != nil || line == "=" {
			return nil, c.rejectAttempt(a, event.BadExchange, "BAD Invalid base64.")
		}
	}
}

// knownMechanisms holds mechanism names that records may contain (IANA's SASL registry and
// others in use). Constant.
var knownMechanisms = map[string]bool{
	"ANONYMOUS": true, "CRAM-MD5": true, "DIGEST-MD5": true, "EXTERNAL": true, "LOGIN": true, "PLAIN": true,
	"SCRAM-SHA-1": true, "SCRAM-SHA-1-PLUS": true, "SCRAM-SHA-256": true, "SCRAM-SHA-256-PLUS": true,
	"SCRAM-SHA-512": true, "SCRAM-SHA-512-PLUS": true, "SCRAM-SHA3-512": true, "SCRAM-SHA3-512-PLUS": true,
	"GSSAPI": true, "GSS-SPNEGO": true, "GS2-KRB5": true, "GS2-KRB5-PLUS": true, "KERBEROS_V4": true, "NTLM": true,
	"OAUTHBEARER": true, "XOAUTH2": true, "XTOKEN": true, "OPENID20": true, "SAML20": true,
	"OTP": true, "SECURID": true, "SKEY": true,
}

// mechanismName returns the recorded name of a mechanism that is not offered. An unknown
// name is left out: it may be a misplaced password.
func mechanismName(text string) string {
	name := strings.ToUpper(text)
	if !knownMechanisms[name] {
		name = ""
	}
	return "AUTH=" + name
}

// sendServerProof sends the mechanism's proof that the server knows the password too.
// IMAP's OK cannot carry it, so it is a challenge with an empty response (RFC 9051 §6.2.2).
// It is sent only after the gateway and the backend have accepted the login. It confirms a
// guess, even for a user who is blocked or has no route.
func (c *connection) sendServerProof(a *login.Attempt) error {
	if a.FinalChallenge == nil {
		return nil
	}
	c.client.Limits.EndLogin() // the password is right: a silent client must not delay other logins
	line, err := c.challengeClient(a.FinalChallenge, imap.PreauthLimits)
	if err != nil {
		return fmt.Errorf("%w: %w", login.ErrProofUnanswered, err)
	}
	if line != "" {
		return login.ErrProofCancelled
	}
	return nil
}

// sendTokenError sends a client with a refused token where to get another, and reads its
// acknowledgement (RFC 7628 §3.2.3).
func (c *connection) sendTokenError(a *login.Attempt) error {
	challenge := c.server.cfg.TokenRefusal.Challenge(a.Login.Mechanism)
	if challenge == nil {
		return nil
	}
	_, err := c.challengeClient(challenge, imap.PreauthLimits)
	return err
}

// responseLimits returns the limits of a response to a challenge. Tokens may be long.
func responseLimits(mechanism string) imap.Limits {
	if mechanism == auth.SASLOAuthBearer || mechanism == auth.SASLXOAuth2 {
		return imap.AuthenticateLimits
	}
	return imap.PreauthLimits
}

// challengeClient sends a challenge and reads the client's response line.
func (c *connection) challengeClient(challenge []byte, limits imap.Limits) (string, error) {
	if err := c.sendLine("+ " + base64.StdEncoding.EncodeToString(challenge)); err != nil {
		return "", err
	}
	line, err := c.conn.ReadOrSkipLine(limits.Line, limits.SkipBytes)
	return string(line), err
}

// exchangeFailure returns the record for an exchange whose next line could not be read.
func exchangeFailure(ctx context.Context, err error) (event.Result, event.Reason) {
	switch {
	case errors.Is(err, imap.ErrLineEnding), errors.Is(err, imap.ErrLineTooLong), errors.Is(err, imap.ErrLineSkipped):
		return event.ResultRefused, event.BadExchange
	case ctx.Err() != nil:
		return event.ResultAbandoned, event.Shutdown
	}
	return event.ResultAbandoned, event.ClientAborted
}

// rejectAttempt records and answers an attempt that was not a login in good order.
func (c *connection) rejectAttempt(a *login.Attempt, reason event.Reason, answer string) error {
	c.server.logins.RecordInvalid(&c.client, a, event.ResultRefused, reason)
	return c.rejectCommand(a.Tag, answer)
}

// decodeResponse decodes a response; "=" is an empty one (RFC 4959 §3). The result is never
// nil.
func decodeResponse(text string) ([]byte, error) {
	if text == "" || text == "=" {
		return []byte{}, nil
	}
	if strings.ContainsAny(text, "\r\n") { // the decoder would skip them
		return nil, base64.CorruptInputError(0)
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}
