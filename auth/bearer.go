package auth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"imapgate/internal/identity"
)

// The mechanisms that carry a bearer token, as AUTHENTICATE names them and as Login.Mechanism
// does.
const (
	OAuthBearer = "OAUTHBEARER" // RFC 7628
	XOAuth2     = "XOAUTH2"     // Google's, older than the RFC and the most widely implemented

	SASLOAuthBearer = "AUTH=" + OAuthBearer
	SASLXOAuth2     = "AUTH=" + XOAuth2
)

// Constant texts: they never quote the message.
var (
	errMalformedBearer = errors.New("malformed SASL message")
	errBearerScheme    = errors.New("authorization is not a bearer token")
	errMalformedToken  = errors.New("token has invalid characters")
	errBearerUser      = fmt.Errorf("%w: user name is missing or has invalid characters", identity.ErrName)
)

// bearerServer implements OAUTHBEARER or XOAUTH2. go-sasl's own OAUTHBEARER is not used: an
// empty line after a refused token makes it read past its end. It does not support the gs2 flag
// "y", escaped names or unknown keys either.
//
// It only parses the client's message. A method verifies the token later, perhaps with a
// request to a provider; TokenRefusal then answers a refused one.
type bearerServer struct {
	// Set once.
	parse func(message string) (user, token string, err error)
	// accept is called once with the parts of the message and the error of parsing it. The user
	// of OAUTHBEARER is "" when the client leaves it to the token.
	accept func(user, token string, parseErr error) error
}

// Next implements sasl.Server. Without an initial response it requests one with an empty
// challenge.
func (s *bearerServer) Next(response []byte) ([]byte, bool, error) {
	if response == nil {
		return []byte{}, false, nil
	}
	if len(response) > maxBearerMessage {
		return nil, false, ErrTooLong
	}
	user, token, err := s.parse(string(response))
	if err := s.accept(user, token, err); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// parseOAuthBearer parses "n,a=user,^Aauth=Bearer token^A^A" (RFC 7628 §3.1). The mechanism has
// no channel bindings ("p="). The flag "y" means that the client believes the server has none,
// which is right.
func parseOAuthBearer(message string) (user, token string, err error) {
	header, rest, ok := strings.Cut(message, kvSeparator)
	if !ok {
		return "", "", errMalformedBearer
	}
	flag, name, _ := strings.Cut(header, ",")
	name, ok = strings.CutSuffix(name, ",")
	if !ok || flag != "n" && flag != "y" {
		return "", "", errMalformedBearer
	}
	var nameErr error
	if name != "" { // without one, the token names the user
		if name, ok = strings.CutPrefix(name, "a="); !ok || strings.Contains(name, ",") {
			return "", "", errMalformedBearer
		}
		if user, nameErr = parseSASLName(name); nameErr != nil {
			user = name
		}
	}
	pairs, err := parsePairs(rest)
	if err != nil {
		return "", "", err
	}
	token, err = parseBearerToken(pairs["auth"])
	return user, token, cmp.Or(nameErr, err)
}

// parseXOAuth2 parses "user=name^Aauth=Bearer token^A^A".
func parseXOAuth2(message string) (user, token string, err error) {
	pairs, err := parsePairs(message)
	if err != nil {
		return "", "", err
	}
	token, err = parseBearerToken(pairs["auth"])
	if user = pairs["user"]; user == "" || hasControl(user) {
		return user, token, errBearerUser
	}
	return user, token, err
}

const kvSeparator = "\x01"

// parsePairs parses "key=value^Akey=value^A^A". Unused and unknown keys (host, port, mthd,
// path, post, qs) are allowed, because RFC 7628 §3.1 requires servers to ignore them. A
// duplicate key is refused, because it is ambiguous.
func parsePairs(text string) (map[string]string, error) {
	text, ok := strings.CutSuffix(text, kvSeparator+kvSeparator)
	if !ok {
		return nil, errMalformedBearer
	}
	pairs := make(map[string]string, 4)
	for pair := range strings.SplitSeq(text, kvSeparator) {
		key, value, ok := strings.Cut(pair, "=")
		_, duplicate := pairs[key]
		if !ok || duplicate || !isKey(key) {
			return nil, errMalformedBearer
		}
		pairs[key] = value
	}
	return pairs, nil
}

// isKey reports whether s is 1*ALPHA (RFC 7628 §3.1).
func isKey(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
}

// parseSASLName decodes a saslname (RFC 5801 §4): a comma and an equals sign are escaped, and
// nothing else may be.
func parseSASLName(escaped string) (string, error) {
	if strings.ContainsAny(strings.NewReplacer("=2C", "", "=3D", "").Replace(escaped), "=,") {
		return "", errBearerUser
	}
	name := strings.NewReplacer("=2C", ",", "=3D", "=").Replace(escaped)
	if name == "" || hasControl(name) {
		return "", errBearerUser
	}
	return name, nil
}

// parseBearerToken returns the b64token (RFC 6750 §2.1) after "Bearer", whose case does not
// matter. The error is ErrTooLong for more than identity.MaxToken bytes. With an error it
// returns the text in the token's place.
func parseBearerToken(authorization string) (string, error) {
	scheme, token, ok := strings.Cut(authorization, " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") {
		return authorization, errBearerScheme
	}
	token = strings.TrimLeft(token, " ")
	switch {
	case len(token) > identity.MaxToken:
		return token, ErrTooLong
	case !isB64Token(token):
		return token, errMalformedToken
	}
	return token, nil
}

// isB64Token reports whether s is a b64token, which is safe inside a header or a command.
func isB64Token(s string) bool {
	body := strings.TrimRight(s, "=")
	return body != "" && strings.Trim(body, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~+/") == ""
}

// TokenRefusal is the reply to a client whose token was refused, so that the client can obtain
// another. It contains nothing about the user.
type TokenRefusal struct {
	Scope        string // scope that a token needs; "" omits it
	DiscoveryURL string // URL of the provider's discovery document; "" omits it
}

// Challenge returns the JSON that the server sends, in base64, as a last challenge before the
// NO. The client answers it with a line that is read and discarded (RFC 7628 §3.2.2, §3.2.3).
// It is nil for a mechanism without tokens.
func (r TokenRefusal) Challenge(mechanism string) []byte {
	switch mechanism {
	case SASLOAuthBearer:
		return mustJSON(struct {
			Status        string `json:"status"`
			Scope         string `json:"scope,omitempty"`
			Configuration string `json:"openid-configuration,omitempty"`
		}{"invalid_token", r.Scope, r.DiscoveryURL})
	case SASLXOAuth2: // the format is Google's; clients look for the 401
		return mustJSON(struct {
			Status  string `json:"status"`
			Schemes string `json:"schemes"`
			Scope   string `json:"scope,omitempty"`
		}{"401", "Bearer", r.Scope})
	}
	return nil
}

func mustJSON(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("auth: JSON encoding of a struct of strings failed")
	}
	return text
}
