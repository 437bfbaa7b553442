package upstream

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

// maxPassword bounds a password in bytes. In base64 it still fits the 8 KiB that servers read
// as a line.
const maxPassword = 4096

// LongTokenSize is the length of a token, in bytes, above which some servers may not accept
// it. In base64 and after the name, it may exceed the 8 KiB that servers read as a line.
// Dovecot bounds a response by the same size, and closes the connection beyond it.
const LongTokenSize = 5 << 10

// maxPresented bounds how often one login sends its credentials: a backend may answer BAD to a
// wrong password, and count each as a failure.
const maxPresented = 2

var (
	errNoToken       = errors.New("the client sent no token, and the backend accepts nothing else")
	errTokenTooLong  = fmt.Errorf("%w with a token of this length: it closes the connection", errMechanism)
	errContradiction = fmt.Errorf("%w: it accepts a token that it has just rejected", errProtocol)
)

// AcceptsCredentials reports whether the backend's login can use what a client has sent.
// Clients verified by SCRAM or EXTERNAL send neither a password nor a token.
func (b *Backend) AcceptsCredentials(password, token identity.Secret) bool {
	return b.UsesMasterLogin() || !token.IsZero() || b.cfg().Login != OAuthLogin && !password.IsZero()
}

// credentials are what a login sends.
type credentials struct {
	authzid  string // user to act as, if it is not user; SASL only
	user     string
	password identity.Secret
	token    identity.Secret // replaces the password if set
}

// hasLongToken reports whether the token is too long for some servers.
func (c credentials) hasLongToken() bool { return len(c.token.Reveal()) > LongTokenSize }

// buildCredentials returns the credentials to send. It rejects names and passwords with
// control characters: they could end a line and inject a command or a log line, on this server
// or a later one.
func (cfg *Config) buildCredentials(req Request) (credentials, error) {
	name := cmp.Or(req.Login, req.User.String())
	if req.User.IsZero() || !isSendable(name, identity.MaxUser) {
		return credentials{}, errUnsendable
	}
	switch {
	case cfg.Login == MasterLogin:
		return cfg.masterCredentials(name)
	case !req.Token.IsZero():
		if t := req.Token.Reveal(); !isSendable(t, identity.MaxToken) || strings.Contains(t, " ") { // a space would end it early
			return credentials{}, errUnsendable
		}
		return credentials{user: name, token: req.Token}, nil
	case cfg.Login == OAuthLogin:
		return credentials{}, fmt.Errorf("%w: %w", ErrUnavailable, errNoToken)
	case !isSendable(req.Password.Reveal(), maxPassword): // sent as the client sent it, in any charset
		return credentials{}, errUnsendable
	}
	return credentials{user: name, password: req.Password}, nil
}

// masterCredentials returns the gateway's own credentials, on behalf of the user.
func (cfg *Config) masterCredentials(name string) (credentials, error) {
	m := cfg.Master
	// The backend splits at the first separator: a name that contains one could choose the
	// master user.
	if strings.Contains(name, m.Separator) {
		return credentials{}, errUnsendable
	}
	c := credentials{authzid: name, user: m.User, password: m.Password.Current()}
	if m.Style == SeparatorStyle {
		c.authzid, c.user = "", name+m.Separator+m.User
	}
	if !isSendable(c.user, 2*identity.MaxUser) || !isSendable(c.password.Reveal(), maxPassword) {
		return credentials{}, fmt.Errorf("%w: master user or password cannot be sent", ErrUnavailable)
	}
	return c, nil
}

// isSendable reports whether s is not empty, at most maxLen bytes and free of control
// characters.
func isSendable(s string, maxLen int) bool {
	return s != "" && len(s) <= maxLen && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

// loginForm is a way to send credentials.
type loginForm uint8

// The forms, in order of preference.
const (
	formInitialResponse loginForm = iota // AUTHENTICATE with an initial response (RFC 4959)
	formContinuation                     // AUTHENTICATE, and the response on request
	formLogin                            // LOGIN, with literals
)

// String returns the form's name in logs.
func (f loginForm) String() string {
	return [...]string{"AUTHENTICATE with an initial response", "AUTHENTICATE", "LOGIN"}[f]
}

// listForms returns the forms in which a backend with caps accepts the credentials.
func (c credentials) listForms(caps imap.Caps) (forms []loginForm, err error) {
	bySASL := caps.Has("AUTH=PLAIN")
	byLogin := c.authzid == "" && !caps.Has("LOGINDISABLED")
	switch {
	case !c.token.IsZero():
		if _, err := c.bearerMessage(caps); err != nil {
			return nil, err
		}
		bySASL, byLogin = true, false
	case !bySASL && c.authzid != "":
		return nil, fmt.Errorf("%w as a master user: no AUTH=PLAIN", errMechanism)
	case !bySASL && !byLogin:
		return nil, fmt.Errorf("%w: LOGINDISABLED", errMechanism)
	}
	if bySASL && caps.Has("SASL-IR") && !c.hasLongToken() {
		forms = append(forms, formInitialResponse)
	}
	if bySASL {
		forms = append(forms, formContinuation)
	}
	if byLogin {
		forms = append(forms, formLogin)
	}
	return forms, nil
}

// formPreference tracks which of the listed forms a backend has accepted. It is safe for
// concurrent use.
type formPreference struct {
	mu sync.Mutex

	// Guarded by mu.
	preferred loginForm // form to try first
	accepted  bool      // no BAD since
	succeeded bool      // a login in this form has succeeded
}

// orderForms returns the forms to try. If the preferred form is accepted, a BAD is about the
// credentials, so no other is tried.
func (p *formPreference) orderForms(forms []loginForm) []loginForm {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(forms, p.preferred)
	if i < 0 {
		return forms
	}
	if p.accepted {
		return forms[i : i+1]
	}
	return slices.Concat(forms[i:], forms[:i])
}

// recordAccepted records that the backend understood f, and whether the login succeeded.
func (p *formPreference) recordAccepted(f loginForm, succeeded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.succeeded = succeeded || p.succeeded && p.preferred == f
	p.preferred, p.accepted = f, true
}

// recordRejected records that the backend understood no form. The next login tries several
// forms, beginning with next, or with the accepted one. A form that has succeeded stays first:
// a client can send credentials to which every form gets a BAD.
func (p *formPreference) recordRejected(next loginForm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.accepted && !p.succeeded {
		p.preferred = next
	}
	p.accepted = false
}

// loginCommand is a command in the parts in which it is sent. The backend requests each part
// after the first.
type loginCommand struct {
	idTag         string // tag of the ID command in front; "": none
	bytes         []byte
	partEnds      []int  // end of each part in bytes but the last; at most two
	finalResponse string // response to a challenge after the last part; "": none is allowed
	challenged    bool   // there was a challenge, so the credentials were understood
}

// appendLogin appends the login in form f: base64 in one line, base64 on request, or literals.
// Credentials are never sent as quoted strings.
func (c credentials) appendLogin(cmd *loginCommand, f loginForm, lc *loginConn) error {
	if f == formLogin {
		c.appendLiterals(cmd, lc)
		return nil
	}
	m := saslMessage{mechanism: "PLAIN", message: []byte(c.authzid + "\x00" + c.user + "\x00" + c.password.Reveal())}
	if !c.token.IsZero() {
		var err error
		if m, err = c.bearerMessage(lc.caps); err != nil {
			return err
		}
	}
	cmd.finalResponse = m.finalResponse
	cmd.bytes = append(append(append(cmd.bytes, lc.loginTag...), " AUTHENTICATE "...), m.mechanism...)
	if f == formInitialResponse {
		cmd.bytes = append(cmd.bytes, ' ')
	} else {
		cmd.bytes = append(cmd.bytes, '\r', '\n')
		cmd.partEnds = append(cmd.partEnds, len(cmd.bytes))
	}
	cmd.bytes = base64.StdEncoding.AppendEncode(cmd.bytes, m.message)
	clear(m.message)
	cmd.bytes = append(cmd.bytes, '\r', '\n')
	return nil
}

// appendLiterals appends LOGIN.
func (c credentials) appendLiterals(cmd *loginCommand, lc *loginConn) {
	password := c.password.Reveal()
	// RFC 7888 §5: LITERAL- allows up to 4096 octets.
	lit := imap.Literal{NonSync: lc.caps.Has("LITERAL+") || lc.caps.Has("LITERAL-") && max(len(c.user), len(password)) <= 4096}
	cmd.bytes = append(append(cmd.bytes, lc.loginTag...), " LOGIN "...)
	cmd.bytes = imap.AppendLiteral(cmd.bytes, c.user, lit)
	userAt := len(cmd.bytes)
	cmd.bytes = append(append(cmd.bytes, c.user...), ' ')
	cmd.bytes = imap.AppendLiteral(cmd.bytes, password, lit)
	if !lit.NonSync {
		cmd.partEnds = append(cmd.partEnds, userAt, len(cmd.bytes))
	}
	cmd.bytes = append(append(cmd.bytes, password...), '\r', '\n')
}

// saslMessage is the message of a mechanism and, for tokens, the response to its error
// challenge. A backend that rejects a token sends the reason in a challenge, and NO after the
// response.
type saslMessage struct {
	mechanism     string
	message       []byte
	finalResponse string
}

// bearerMessage chooses OAUTHBEARER, or else XOAUTH2. The optional host and port of RFC 7628
// are left out: the backend's name here differs from the one that the client connected to.
func (c credentials) bearerMessage(caps imap.Caps) (saslMessage, error) {
	token := c.token.Reveal()
	switch {
	case caps.Has(auth.SASLOAuthBearer):
		name := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(c.user) // RFC 5801 §4
		return saslMessage{auth.OAuthBearer, []byte("n,a=" + name + ",\x01auth=Bearer " + token + "\x01\x01"), "AQ==\r\n"}, nil
	case caps.Has(auth.SASLXOAuth2):
		return saslMessage{auth.XOAuth2, []byte("user=" + c.user + "\x01auth=Bearer " + token + "\x01\x01"), "\r\n"}, nil
	}
	return saslMessage{}, errNoTokenMechanism
}

// isVerificationFailure reports whether a challenge means a failure of the backend or its
// provider, and not a bad token. It knows Dovecot's status, those of RFC 6749 §4.1.2.1, and
// HTTP status 5xx.
func isVerificationFailure(challenge string) bool {
	text, err := base64.StdEncoding.DecodeString(challenge)
	if err != nil {
		return false
	}
	var reason struct {
		Status string `json:"status"`
	}
	if json.Unmarshal(text, &reason) != nil {
		return false
	}
	switch reason.Status {
	case "internal_failure", "server_error", "temporarily_unavailable":
		return true
	}
	return len(reason.Status) == 3 && reason.Status[0] == '5'
}
