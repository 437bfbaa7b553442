package proxy

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

var (
	// errProofCancelled reports a client that cancelled an exchange after the server's
	// proof. The client then knows that the password is right.
	errProofCancelled = errors.New("client cancelled after the server's proof")
	// errProofUnanswered reports a client that did not reply to the server's proof.
	errProofUnanswered = errors.New("client did not answer the server's proof")
)

// authClient describes this connection to package auth.
func (c *connection) authClient() *auth.Client {
	info := &auth.Client{
		Session: c.client.Session, Listener: c.listener.Name, Addr: c.clientAddr(), Peer: c.client.Peer,
		Local: addrPort(c.socket.LocalAddr()), ProxyHeader: c.proxyInfo, Attempt: c.attempts, ServedCertificate: c.serverCert,
	}
	if c.tls != nil {
		state := c.tls.ConnectionState()
		info.TLS = &state
	}
	return info
}

func (c *connection) newAttempt(tag string) *attempt {
	c.attempts++
	return &attempt{tag: tag, receivedAt: time.Now(), login: auth.Login{Client: c.authClient()}}
}

// parseLogin parses LOGIN (RFC 9051 §6.2.3): two strings.
func (c *connection) parseLogin(cmd imap.Command) (*attempt, error) {
	if c.isCleartext() {
		return nil, c.rejectCleartext(cmd)
	}
	if len(cmd.Args) != 2 || !cmd.Args[0].IsString() || !cmd.Args[1].IsString() {
		return nil, c.rejectCommand(cmd.Tag, "BAD LOGIN takes a user name and a password.")
	}
	a := c.newAttempt(cmd.Tag)
	a.login.Mechanism, a.login.Password = auth.CommandLogin, identity.NewSecret(cmd.Args[1].Text)
	a.login.User, a.rawLogin, a.earlyErr = c.server.deps.Auth.ReadPasswordLogin(cmd.Args[0].Text, a.login.Password)
	if !c.server.deps.Auth.AllowsPasswords(a.login.Client) {
		return nil, c.rejectMechanism(a, "NO LOGIN is disabled.")
	}
	return a, nil
}

// rejectMechanism refuses a mechanism that the capability list does not offer.
func (c *connection) rejectMechanism(a *attempt, answer string) error {
	c.recordRefusal(a, refusal{result: event.ResultRefused, reason: event.BadMechanism}, nil)
	return c.rejectCommand(a.tag, answer)
}

// authenticate handles AUTHENTICATE (RFC 9051 §6.2.2) with an optional initial response
// (RFC 4959).
func (c *connection) authenticate(ctx context.Context, cmd imap.Command) (*attempt, error) {
	if c.isCleartext() {
		return nil, c.rejectCleartext(cmd)
	}
	if n := len(cmd.Args); n < 1 || n > 2 || cmd.Args[0].Kind != imap.Atom || cmd.Args[n-1].Kind != imap.Atom {
		return nil, c.rejectCommand(cmd.Tag, "BAD AUTHENTICATE takes a mechanism and at most one response.")
	}
	a := c.newAttempt(cmd.Tag)
	client := a.login.Client
	exchange, ok := c.server.deps.Auth.Start(cmd.Args[0].Text, client)
	if !ok {
		a.login.Mechanism = mechanismName(cmd.Args[0].Text)
		return nil, c.rejectMechanism(a, "NO Unsupported mechanism.")
	}
	a.login.Mechanism = exchange.Mechanism()
	var response []byte // nil: no initial response
	if len(cmd.Args) == 2 {
		var err error
		if response, err = decodeResponse(cmd.Args[1].Text); err != nil {
			return nil, c.rejectExchange(a, "BAD Invalid base64.")
		}
	}
	for {
		if a.earlyErr = c.checkLookupLimits(ctx, a, response); a.earlyErr != nil {
			return a, nil
		}
		challenge, done, err := exchange.Next(ctx, response)
		a.rawLogin = exchange.PresentedLogin()
		if err != nil || done {
			a.rawLogin.User = cmp.Or(a.rawLogin.User, a.login.User)
			a.login, a.earlyErr, a.finalChallenge = exchange.Login(), err, challenge
			a.login.Client, a.login.Mechanism = client, exchange.Mechanism()
			return a, nil
		}
		line, err := c.challengeClient(challenge, responseLimits(a.login.Mechanism))
		if err != nil {
			c.recordRefusal(a, exchangeFailure(ctx, err), nil)
			return nil, c.answerMalformed(cmd, err)
		}
		if line == "*" {
			return nil, c.rejectExchange(a, "BAD Cancelled.")
		}
		if response, err = decodeResponse(line); err != nil || line == "=" {
			return nil, c.rejectExchange(a, "BAD Invalid base64.")
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

// scramUser returns the user name in the first message of SCRAM (RFC 5802 §7).
func scramUser(message []byte) (string, bool) {
	fields := strings.SplitN(string(message), ",", 4) // binding, authzid, name, the rest
	if len(fields) < 4 {
		return "", false
	}
	name, ok := strings.CutPrefix(fields[2], "n=")
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(name), ok
}

// sendServerProof sends the mechanism's proof that the server knows the password too.
// IMAP's OK cannot carry it, so it is a challenge with an empty response (RFC 9051 §6.2.2).
// It is sent only after the gateway and the backend have accepted the login. It confirms a
// guess, even for a user who is blocked or has no route.
func (c *connection) sendServerProof(a *attempt) error {
	if a.finalChallenge == nil {
		return nil
	}
	c.limits.EndLogin() // the password is right: a silent client must not delay other logins
	line, err := c.challengeClient(a.finalChallenge, imap.PreauthLimits)
	if err != nil {
		return fmt.Errorf("%w: %w", errProofUnanswered, err)
	}
	if line != "" {
		return errProofCancelled
	}
	return nil
}

// sendTokenError sends a client with a refused token where to get another, and reads its
// acknowledgement (RFC 7628 §3.2.3).
func (c *connection) sendTokenError(a *attempt) error {
	challenge := c.server.cfg.TokenRefusal.Challenge(a.login.Mechanism)
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

// exchangeFailure returns the refusal for an exchange whose next line could not be read.
func exchangeFailure(ctx context.Context, err error) refusal {
	switch {
	case errors.Is(err, imap.ErrLineEnding), errors.Is(err, imap.ErrLineTooLong), errors.Is(err, imap.ErrLineSkipped):
		return refusal{result: event.ResultRefused, reason: event.BadExchange}
	case ctx.Err() != nil:
		return refusal{result: event.ResultAbandoned, reason: event.Shutdown}
	}
	return refusal{result: event.ResultAbandoned, reason: event.ClientAborted}
}

func (c *connection) rejectExchange(a *attempt, answer string) error {
	c.recordRefusal(a, refusal{result: event.ResultRefused, reason: event.BadExchange}, nil)
	return c.rejectCommand(a.tag, answer)
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
