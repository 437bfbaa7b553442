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

// LongTokenSize is the length in bytes above which a token, in base64 and with the name
// in front, may not fit the 8 KiB that servers take for a line. Dovecot has the same
// bound for a response, and ends the connection beyond it.
const LongTokenSize = 5 << 10

var (
	errNoToken       = errors.New("the client brought no token, and the backend takes nothing else")
	errTokenTooLong  = fmt.Errorf("%w with a token of this length: it ends the connection", errMechanism)
	errContradiction = fmt.Errorf("%w: it accepts a token that it has just refused", errProtocol)
)

// AcceptsCredentials says whether something that a client brought can be shown to the
// backend, as its login needs. Who has proven itself without giving anything
// away (SCRAM, EXTERNAL) brings neither.
func (b *Backend) AcceptsCredentials(password, token identity.Secret) bool {
	switch b.cfg.Login {
	case MasterLogin:
		return true
	case OAuthLogin:
		return !token.IsZero()
	}
	return !password.IsZero() || !token.IsZero()
}

// bearer is what the first message of the mechanism and the answer to its
// refusal are. A backend that refuses a token says why in a challenge, and waits
// for an answer before it says NO.
type bearer struct {
	mechanism     string
	message       string
	finalResponse string
}

// bearerMessage chooses the mechanism: the standard's, or what came before it. The
// host and the port of RFC 7628 are left out, as they may be: what the backend
// is called here is not what the client called us.
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

// hasLongToken reports whether there is a token that some servers do not read to its end.
func (c credentials) hasLongToken() bool { return len(c.token.Reveal()) > LongTokenSize }

// finishRefusal answers a challenge that explains a refusal, and reads the NO that
// must follow (RFC 7628 §3.2.3). Of the challenge only one thing matters: whether
// the backend could verify the token at all. Dovecot 2.4 says there alone that its
// provider did not answer, and AUTHENTICATIONFAILED behind it.
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

// isVerificationFailure says whether a challenge tells of a failure of the backend or of its
// provider, not of a bad token: by the word that Dovecot uses, those of RFC 6749
// §4.1.2.1, or an HTTP status of 5xx.
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

// tokenCredentials are the credentials of who comes with a token. It must be read as one
// word wherever it is sent.
func tokenCredentials(name string, token identity.Secret) (credentials, error) {
	if t := token.Reveal(); !isSendable(t, identity.MaxToken) || strings.Contains(t, " ") {
		return credentials{}, errUnsendable
	}
	return credentials{user: name, token: token}, nil
}
