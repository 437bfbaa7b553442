package oauth

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// claims are the claims of a token, or of an introspection response. It is a map and not a
// struct, because encoding/json would match EXP to exp.
type claims map[string]json.RawMessage

// stringClaim returns a claim that is a string; "" if it is missing or not a string.
func (c claims) stringClaim(name string) string {
	var s string
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

// stringsClaim returns a claim that is a string or an array of strings, as aud may be.
func (c claims) stringsClaim(name string) []string {
	if s := c.stringClaim(name); s != "" {
		return []string{s}
	}
	var list []string
	if json.Unmarshal(c[name], &list) != nil {
		return nil
	}
	return list
}

// boolClaim returns a claim that is a boolean. Some providers write it as a string.
func (c claims) boolClaim(name string) bool {
	var b bool
	if json.Unmarshal(c[name], &b) != nil {
		return c.stringClaim(name) == "true"
	}
	return b
}

// maxDate bounds a NumericDate: the year 9999.
const maxDate = 253402300799

// dateClaim returns a NumericDate (RFC 7519 §2); zero if it is missing. An invalid one is not
// ok.
func (c claims) dateClaim(name string) (at time.Time, ok bool) {
	if !c.has(name) {
		return time.Time{}, true
	}
	var n float64
	if json.Unmarshal(c[name], &n) != nil || n <= 0 || n > maxDate {
		return time.Time{}, false
	}
	return time.Unix(int64(n), 0), true
}

func (c claims) has(name string) bool {
	v, ok := c[name]
	return ok && string(v) != "null"
}

// checkClaims returns the subject of claims that satisfy the settings. Without an issuer they
// come from an introspection.
func (s *Settings) checkClaims(c claims, now time.Time) (Subject, error) {
	subject, err := checkLifetime(c, now)
	switch {
	case err != nil:
		return Subject{}, err
	case s.Issuer != "" && c.stringClaim("iss") != s.Issuer:
		return Subject{}, invalidToken("issued by another provider")
	case s.Issuer != "" && subject.Expires.IsZero():
		return Subject{}, invalidToken("no exp")
	case len(s.Audience) > 0 && !intersect(s.Audience, c.stringsClaim("aud")):
		return Subject{}, invalidToken("not for this audience")
	case len(s.AuthorizedParty) > 0 && !slices.Contains(s.AuthorizedParty, c.authorizedParty()):
		return Subject{}, invalidToken("given to another client")
	case s.Scope != "" && !slices.Contains(c.scopes(), s.Scope):
		return Subject{}, invalidToken("without the scope")
	case c.has("cnf"): // RFC 7800: its bearer must prove possession of a key, which SASL cannot carry
		return Subject{}, invalidToken("bound to a key")
	}
	if subject.Name = c.stringClaim(s.UsernameClaim); subject.Name == "" {
		return Subject{}, invalidToken("without the user's name")
	}
	// Where users can change their own address, an unverified one may belong
	// to another user.
	if s.UsernameClaim == "email" && c.has("email_verified") && !c.boolClaim("email_verified") {
		return Subject{}, invalidToken("the address is not verified")
	}
	return subject, nil
}

// checkLifetime checks the rules that apply to claims from any source.
func checkLifetime(c claims, now time.Time) (Subject, error) {
	expires, ok := c.dateClaim("exp")
	if !ok || !expires.IsZero() && !now.Before(expires.Add(Leeway)) {
		return Subject{}, invalidToken("expired")
	}
	notBefore, ok := c.dateClaim("nbf")
	if !ok || now.Before(notBefore.Add(-Leeway)) {
		return Subject{}, invalidToken("not valid yet")
	}
	return Subject{Expires: expires}, nil
}

// authorizedParty returns the client that the token was issued to: azp in OpenID Connect,
// client_id in RFC 9068 and RFC 7662.
func (c claims) authorizedParty() string {
	return cmp.Or(c.stringClaim("azp"), c.stringClaim("client_id"))
}

// scopes returns the scopes, which are separated by spaces in scope (RFC 6749 §3.3). Two big
// providers use scp instead, one of them as an array.
func (c claims) scopes() []string {
	var all []string
	for _, s := range append(c.stringsClaim("scope"), c.stringsClaim("scp")...) {
		all = append(all, strings.Fields(s)...)
	}
	return all
}

func intersect(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
