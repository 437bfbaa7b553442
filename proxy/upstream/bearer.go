package upstream

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
)

// LongTokenSize is the length of a token, in bytes, above which some servers may not accept
// it. In base64 and after the name, it may exceed the 8 KiB that servers read as a line.
// Dovecot bounds a response by the same size, and closes the connection beyond it.
const LongTokenSize = 5 << 10

var (
	errNoToken       = errors.New("the client sent no token, and the backend accepts nothing else")
	errTokenTooLong  = fmt.Errorf("%w with a token of this length: it closes the connection", errMechanism)
	errContradiction = fmt.Errorf("%w: it accepts a token that it has just rejected", errProtocol)
)

// AcceptsCredentials reports whether the backend's login can use what a client has sent.
// Clients verified by SCRAM or EXTERNAL send neither a password nor a token.
func (b *Backend) AcceptsCredentials(password, token identity.Secret) bool {
	switch b.cfg.Login {
	case MasterLogin:
		return true
	case OAuthLogin:
		return !token.IsZero()
	}
	return !password.IsZero() || !token.IsZero()
}

// bearer is the first message of a token mechanism, and the response to its error challenge. A
// backend that rejects a token sends the reason in a challenge, and NO after the response.
type bearer struct {
	mechanism     string
	message       string
	finalResponse string
}

// bearerMessage chooses OAUTHBEARER, or else XOAUTH2. The optional host and port of RFC 7628
// are left out: the backend's name here differs from the one that the client connected to.
func (c credentials) bearerMessage(caps imap.Caps) (bearer, error) {
	token := c.token.Reveal()
	switch {
	case caps.Has(auth.SASLOAuthBearer):
		name := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(c.user) // RFC 5801 §4
		return bearer{auth.OAuthBearer, "n,a=" + name + ",\x01auth=Bearer " + token + "\x01\x01", "AQ==\r\n"}, nil
	case caps.Has(auth.SASLXOAuth2):
		return bearer{auth.XOAuth2, "user=" + c.user + "\x01auth=Bearer " + token + "\x01\x01", "\r\n"}, nil
	}
	return bearer{}, errNoTokenMechanism
}

// appendBearer appends AUTHENTICATE with the token.
func (c credentials) appendBearer(cmd *loginCommand, f loginForm, lc *loginConn) error {
	b, err := c.bearerMessage(lc.caps)
	if err != nil {
		return err
	}
	cmd.appendSASL(lc.loginTag+" AUTHENTICATE "+b.mechanism, []byte(b.message), f)
	cmd.finalResponse = b.finalResponse
	return nil
}

// hasLongToken reports whether the token is too long for some servers.
func (c credentials) hasLongToken() bool { return len(c.token.Reveal()) > LongTokenSize }

// finishRefusal answers a challenge that explains a refusal, and reads the NO that must follow
// (RFC 7628 §3.2.3). From the challenge it takes only whether the backend could verify the
// token at all. Dovecot 2.4 reports only there that its provider did not answer, and
// AUTHENTICATIONFAILED after it.
func (c *loginConn) finishRefusal(challenge, response string) (imap.Response, error) {
	if response == "" {
		return imap.Response{}, errContinuation
	}
	if _, err := c.conn.Write([]byte(response)); err != nil {
		return imap.Response{}, err
	}
	res, err := c.readTagged(c.loginTag)
	if err == nil && res.Name == "OK" {
		err = errContradiction
	}
	if res.Name == "NO" && isVerificationFailure(challenge) {
		res.Code, res.Text = "UNAVAILABLE", "Tokens cannot be verified now."
	}
	return res, err
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

// tokenCredentials returns the credentials for a login with a token. A token with
// a space is rejected, because the space would end it early.
func tokenCredentials(name string, token identity.Secret) (credentials, error) {
	if t := token.Reveal(); !isSendable(t, identity.MaxToken) || strings.Contains(t, " ") {
		return credentials{}, errUnsendable
	}
	return credentials{user: name, token: token}, nil
}
