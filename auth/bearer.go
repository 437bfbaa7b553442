package auth

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-sasl"

	"imapgate/internal/identity"
)

// The mechanisms that bring a bearer token, as AUTHENTICATE names them and as
// Login.Mechanism does.
const (
	OAuthBearer = "OAUTHBEARER" // RFC 7628
	XOAuth2     = "XOAUTH2"     // Google's, from before the RFC, and what most programs speak

	SASLOAuthBearer = "AUTH=" + OAuthBearer
	SASLXOAuth2     = "AUTH=" + XOAuth2
)

// Constant: what is wrong with a message, without a word of it.
var (
	errMalformedBearer = errors.New("message has not the form of the mechanism")
	errBearerScheme    = errors.New("authorization is not a bearer token")
	errMalformedToken  = errors.New("token has characters that no token has")
	errBearerUser      = fmt.Errorf("%w: user name is missing, or has characters that no name has", identity.ErrName)
)

// bearerServer is OAUTHBEARER or XOAUTH2. go-sasl's own OAUTHBEARER is not
// used: an empty line after a refused token makes it read past its end, and it
// knows neither gs2's "y" nor the escapes of a name nor keys of others.
//
// It only reads what the client says. Whether the token is good is found out
// later, by somebody who may have to ask; a refusal then is TokenRefusal's.
type bearerServer struct {
	// Set once.
	parse  func(message string) (user, token string, err error)
	accept func(user, token string, wrong error) error
}

// newOAuthBearerServer is RFC 7628. accept is called once with the
// authorization identity, "" when the client leaves it to the token, and with what is
// wrong with the message, if anything is.
func newOAuthBearerServer(accept func(user, token string, wrong error) error) sasl.Server {
	return &bearerServer{parseOAuthBearer, accept}
}

// newXOAuth2Server is Google's mechanism, in which the name is never left out.
func newXOAuth2Server(accept func(user, token string, wrong error) error) sasl.Server {
	return &bearerServer{parseXOAuth2, accept}
}

// Next implements sasl.Server. A client that sends no initial response is asked
// for it with an empty challenge.
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

// parseOAuthBearer reads "n,a=user,^Aauth=Bearer token^A^A" (RFC 7628 §3.1).
// Channel bindings ("p=") are not for this mechanism, and "y" is a client that
// thinks the server has none: it is right.
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
	if name != "" { // without one, the token says who it is
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

// parseXOAuth2 reads "user=name^Aauth=Bearer token^A^A".
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

// parsePairs reads "key=value^Akey=value^A^A". Keys that nobody here needs (host,
// port, mthd, path, post, qs and those to come) are allowed: RFC 7628 §3.1 has
// servers ignore what they do not know. A key that stands there twice could be
// read in two ways.
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

// isKey says whether s is 1*ALPHA (RFC 7628 §3.1).
func isKey(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') })
}

// parseSASLName is a saslname (RFC 5801 §4): comma and equals sign are escaped, and
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

// parseBearerToken is what follows "Bearer", whose case does not matter, if it is a
// b64token (RFC 6750 §2.1). ErrTooLong is one of more than identity.MaxToken bytes. With
// an error too, what was shown in the token's place is returned.
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

// isB64Token says whether s is a b64token: what can stand in a header or a command
// and end neither.
func isB64Token(s string) bool {
	body := strings.TrimRight(s, "=")
	for i := range len(body) {
		switch c := body[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9':
		case strings.IndexByte("-._~+/", c) >= 0:
		default:
			return false
		}
	}
	return body != ""
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// TokenRefusal is what a client is told whose token was refused, so that it
// knows where to get another. It says nothing about the user.
type TokenRefusal struct {
	Scope        string // that a token needs; "" says none
	DiscoveryURL string // URL of the provider's discovery document; "" says none
}

// Challenge is the JSON that goes out, in base64, as a last challenge before
// the NO; the client answers it with a line that is read and not looked at
// (RFC 7628 §3.2.2, §3.2.3). It is nil for a mechanism that brings no token.
func (r TokenRefusal) Challenge(mechanism string) []byte {
	switch mechanism {
	case SASLOAuthBearer:
		return mustJSON(struct {
			Status        string `json:"status"`
			Scope         string `json:"scope,omitempty"`
			Configuration string `json:"openid-configuration,omitempty"`
		}{"invalid_token", r.Scope, r.DiscoveryURL})
	case SASLXOAuth2: // the words are Google's; programs look for the 401
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
		panic("auth: strings that JSON cannot hold") // there are none
	}
	return text
}
