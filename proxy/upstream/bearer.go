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

// LongToken is the length in bytes above which a token, in base64 and with the name
// in front, may not fit the 8 KiB that servers take for a line. Dovecot has the same
// bound for a response, and ends the connection beyond it.
const LongToken = 5 << 10

var (
	errNoToken  = errors.New("the client brought no token, and the backend takes nothing else")
	errTokenEnd = fmt.Errorf("%w with a token of this length: it ends the connection", errMechanism)
	errRepented = fmt.Errorf("%w: it accepts a token that it has just refused", errProtocol)
)

// Shows says whether something that a client brought can be shown to the
// backend, as its login needs. Who has proven itself without giving anything
// away (SCRAM, EXTERNAL) brings neither.
func (b *Backend) Shows(password, token identity.Secret) bool {
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
	mechanism string
	message   string
	dismissal string
}

// bearer chooses the mechanism: the standard's, or what came before it. The
// host and the port of RFC 7628 are left out, as they may be: what the backend
// is called here is not what the client called us.
func (c credentials) bearer(caps imap.Caps) (bearer, error) {
	token := c.token.Reveal()
	switch {
	case caps.Has(auth.SASLOAuthBearer):
		name := strings.NewReplacer("=", "=3D", ",", "=2C").Replace(c.user) // RFC 5801 §4
		return bearer{auth.OAuthBearer, "n,a=" + name + ",\x01auth=Bearer " + token + "\x01\x01", "AQ==\r\n"}, nil
	case caps.Has(auth.SASLXOAuth2):
		return bearer{auth.XOAuth2, "user=" + c.user + "\x01auth=Bearer " + token + "\x01\x01", "\r\n"}, nil
	}
	return bearer{}, errTokenless
}

// appendBearer appends AUTHENTICATE with the token.
func (c credentials) appendBearer(s *script, f form, d *dialogue) error {
	b, err := c.bearer(d.caps)
	if err != nil {
		return err
	}
	s.appendSASL(d.last+" AUTHENTICATE "+b.mechanism, []byte(b.message), f)
	s.dismissal = b.dismissal
	return nil
}

// isLong reports whether there is a token that some servers do not read to its end.
func (c credentials) isLong() bool { return len(c.token.Reveal()) > LongToken }

// dismiss answers a challenge that explains a refusal, and reads the NO that
// must follow (RFC 7628 §3.2.3). Of the challenge only one thing matters: whether
// the backend could verify the token at all. Dovecot 2.4 says there alone that its
// provider did not answer, and AUTHENTICATIONFAILED behind it.
func (d *dialogue) dismiss(challenge, dismissal string) (imap.Response, error) {
	if dismissal == "" {
		return imap.Response{}, errContinue
	}
	if _, err := d.conn.Write([]byte(dismissal)); err != nil {
		return imap.Response{}, err
	}
	res, err := d.tagged(d.last)
	if err == nil && res.Name == "OK" {
		err = errRepented
	}
	if res.Name == "NO" && unverified(challenge) {
		res.Code, res.Text = "UNAVAILABLE", "Tokens cannot be verified now."
	}
	return res, err
}

// unverified says whether a challenge tells of a failure of the backend or of its
// provider, not of a bad token: by the word that Dovecot uses, those of RFC 6749
// §4.1.2.1, or an HTTP status of 5xx.
func unverified(challenge string) bool {
	text, err := base64.StdEncoding.DecodeString(challenge)
	if err != nil {
		return false
	}
	var said struct {
		Status string `json:"status"`
	}
	if json.Unmarshal(text, &said) != nil {
		return false
	}
	switch said.Status {
	case "internal_failure", "server_error", "temporarily_unavailable":
		return true
	}
	return len(said.Status) == 3 && said.Status[0] == '5'
}

// bearing are the credentials of who comes with a token. It must be read as one
// word wherever it is sent.
func bearing(name string, token identity.Secret) (credentials, error) {
	if t := token.Reveal(); !sendable(t, identity.MaxToken) || strings.Contains(t, " ") {
		return credentials{}, errUnsendable
	}
	return credentials{user: name, token: token}, nil
}
