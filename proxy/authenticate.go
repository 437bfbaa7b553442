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
	"imapgate/internal/audit"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/metrics"
)

var (
	// errCancelled is a client that did not end an exchange which had ended well:
	// it knows now that the password is right.
	errCancelled = errors.New("client broke the exchange off")
	// errSilent is a client that could not be read from behind our proof.
	errSilent = errors.New("client was not heard")
)

// client is what the methods and mechanisms may know of this connection.
func (s *session) client() *auth.Client {
	c := &auth.Client{
		Session: s.who.Session, Listener: s.listener.Name, Addr: s.origin(), Peer: s.who.Peer,
		Local: addrPort(s.socket.LocalAddr()), Balancer: s.balancer, Attempt: s.tried, Served: s.served,
	}
	if s.tls != nil {
		state := s.tls.ConnectionState()
		c.TLS = &state
	}
	return c
}

func (s *session) newAttempt(tag string) *attempt {
	s.tried++
	return &attempt{tag: tag, began: time.Now(), login: auth.Login{Client: s.client()}}
}

// login is LOGIN (RFC 9051 §6.2.3): two strings.
func (s *session) login(cmd imap.Command) (*attempt, error) {
	if s.inTheClear() {
		return nil, s.needTLS(cmd)
	}
	if len(cmd.Args) != 2 || !cmd.Args[0].IsString() || !cmd.Args[1].IsString() {
		return nil, s.badCommand(cmd.Tag, "BAD LOGIN takes a user name and a password.")
	}
	a := s.newAttempt(cmd.Tag)
	a.login.Mechanism, a.login.Password = auth.CommandLogin, identity.NewSecret(cmd.Args[1].Text)
	a.login.User, a.tried, a.err = s.server.rooms.Auth.Named(cmd.Args[0].Text, a.login.Password)
	if !s.server.rooms.Auth.TakesPasswords(a.login.Client) {
		return nil, s.notOffered(a, "NO LOGIN is disabled.")
	}
	return a, nil
}

// notOffered refuses a way to log in that was not in the capability list.
func (s *session) notOffered(a *attempt, answer string) error {
	s.recordRefusal(a, refusal{result: refused, reason: audit.BadMechanism}, nil)
	return s.badCommand(a.tag, answer)
}

// authenticate is AUTHENTICATE (RFC 9051 §6.2.2) with an optional initial
// response (RFC 4959).
func (s *session) authenticate(ctx context.Context, cmd imap.Command) (*attempt, error) {
	if s.inTheClear() {
		return nil, s.needTLS(cmd)
	}
	if n := len(cmd.Args); n < 1 || n > 2 || cmd.Args[0].Kind != imap.Atom || cmd.Args[n-1].Kind != imap.Atom {
		return nil, s.badCommand(cmd.Tag, "BAD AUTHENTICATE takes a mechanism and at most one response.")
	}
	a := s.newAttempt(cmd.Tag)
	client := a.login.Client
	exchange, ok := s.server.rooms.Auth.Start(cmd.Args[0].Text, client)
	if !ok {
		a.login.Mechanism = mechanismName(cmd.Args[0].Text)
		return nil, s.notOffered(a, "NO Unsupported mechanism.")
	}
	a.login.Mechanism = exchange.Mechanism()
	var response []byte // nil: the client waits to be asked
	if len(cmd.Args) == 2 {
		var err error
		if response, err = decode(cmd.Args[1].Text); err != nil {
			return nil, s.badExchange(a, "BAD Invalid base64.")
		}
	}
	for {
		if a.err = s.mayAsk(ctx, a, response); a.err != nil {
			return a, nil
		}
		challenge, done, err := exchange.Next(ctx, response)
		a.tried = exchange.Tried()
		if err != nil || done {
			a.tried.User = cmp.Or(a.tried.User, a.login.User)
			a.login, a.err, a.last = exchange.Login(), err, challenge
			a.login.Client, a.login.Mechanism = client, exchange.Mechanism()
			return a, nil
		}
		line, err := s.ask(challenge, responseLimits(a.login.Mechanism))
		if err != nil {
			s.recordRefusal(a, halfway(ctx, err), nil)
			return nil, s.faulty(cmd, err)
		}
		if line == "*" {
			return nil, s.badExchange(a, "BAD Cancelled.")
		}
		if response, err = decode(line); err != nil || line == "=" {
			return nil, s.badExchange(a, "BAD Invalid base64.")
		}
	}
}

// mechanisms are the names that clients may say of mechanisms (IANA's registry of SASL
// mechanisms, and what is in use beside it). Constant.
var mechanisms = map[string]bool{
	"ANONYMOUS": true, "CRAM-MD5": true, "DIGEST-MD5": true, "EXTERNAL": true, "LOGIN": true, "PLAIN": true,
	"SCRAM-SHA-1": true, "SCRAM-SHA-1-PLUS": true, "SCRAM-SHA-256": true, "SCRAM-SHA-256-PLUS": true,
	"SCRAM-SHA-512": true, "SCRAM-SHA-512-PLUS": true, "SCRAM-SHA3-512": true, "SCRAM-SHA3-512-PLUS": true,
	"GSSAPI": true, "GSS-SPNEGO": true, "GS2-KRB5": true, "GS2-KRB5-PLUS": true, "KERBEROS_V4": true, "NTLM": true,
	"OAUTHBEARER": true, "XOAUTH2": true, "XTOKEN": true, "OPENID20": true, "SAML20": true,
	"OTP": true, "SECURID": true, "SKEY": true,
}

// mechanismName is a mechanism that is not offered, as records have it. What is the name
// of none is not repeated: it may be a password in the wrong place.
func mechanismName(said string) string {
	name := strings.ToUpper(said)
	if !mechanisms[name] {
		name = ""
	}
	return "AUTH=" + name
}

// scramName is the user in the first message of SCRAM (RFC 5802 §7).
func scramName(message []byte) (string, bool) {
	fields := strings.SplitN(string(message), ",", 4) // binding, authzid, name, the rest
	if len(fields) < 4 {
		return "", false
	}
	name, ok := strings.CutPrefix(fields[2], "n=")
	return strings.NewReplacer("=2C", ",", "=3D", "=").Replace(name), ok
}

// prove shows the client that we know its password too, where the mechanism has
// it so. IMAP has no place for a mechanism's last word beside the OK, so it goes
// out as a challenge, and the client's answer is empty (RFC 9051 §6.2.2). Not
// before the login is accepted, here and at the backend: it tells whoever guesses
// that the guess is right, also of a user who is blocked or lives nowhere.
func (s *session) prove(a *attempt) error {
	if a.last == nil {
		return nil
	}
	s.visit.Settle() // the password is right: a client that stays silent must not hold up others
	line, err := s.ask(a.last, imap.BeforeLogin)
	if err != nil {
		return fmt.Errorf("%w: %w", errSilent, err)
	}
	if line != "" {
		return errCancelled
	}
	return nil
}

// explain tells a client whose token was refused where to get another, and
// reads the line with which it says that it has understood (RFC 7628 §3.2.3).
func (s *session) explain(a *attempt) error {
	challenge := s.server.cfg.TokenRefusal.Challenge(a.login.Mechanism)
	if challenge == nil {
		return nil
	}
	_, err := s.ask(challenge, imap.BeforeLogin)
	return err
}

// responseLimits are those of a response to a challenge: a token may be long.
func responseLimits(mechanism string) imap.Limits {
	if mechanism == auth.SASLOAuthBearer || mechanism == auth.SASLXOAuth2 {
		return imap.LongResponse
	}
	return imap.BeforeLogin
}

// ask sends a challenge and reads the client's response line.
func (s *session) ask(challenge []byte, lim imap.Limits) (string, error) {
	if err := s.send("+ " + base64.StdEncoding.EncodeToString(challenge)); err != nil {
		return "", err
	}
	line, err := s.conn.ReadOrSkipLine(lim.Line, lim.Skip)
	return string(line), err
}

// halfway says why an exchange went no further than a line that was not read.
func halfway(ctx context.Context, err error) refusal {
	switch {
	case errors.Is(err, imap.ErrLineEnding), errors.Is(err, imap.ErrLineTooLong), errors.Is(err, imap.ErrLineSkipped):
		return refusal{result: refused, reason: audit.BadExchange}
	case ctx.Err() != nil:
		return refusal{result: metrics.Abandoned, reason: audit.GatewayStopping}
	}
	return refusal{result: metrics.Abandoned, reason: audit.ClientWentAway}
}

func (s *session) badExchange(a *attempt, answer string) error {
	s.recordRefusal(a, refusal{result: refused, reason: audit.BadExchange}, nil)
	return s.badCommand(a.tag, answer)
}

// decode reads a response; "=" is the empty one (RFC 4959 §3). The result is
// never nil.
func decode(text string) ([]byte, error) {
	if text == "" || text == "=" {
		return []byte{}, nil
	}
	if strings.ContainsAny(text, "\r\n") { // which the decoder would skip
		return nil, base64.CorruptInputError(0)
	}
	return base64.StdEncoding.Strict().DecodeString(text)
}
