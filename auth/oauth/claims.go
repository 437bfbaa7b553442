package oauth

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// claims are what a token, or the provider, says. A map and not a struct:
// encoding/json would take EXP for exp.
type claims map[string]json.RawMessage

// stringClaim is a claim that is a string; "" when it is missing or none.
func (c claims) stringClaim(name string) string {
	var s string
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

// stringsClaim is a claim that is a string or an array of strings, as aud may be.
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

// boolClaim is a claim that is true or false; some providers write it as a string.
func (c claims) boolClaim(name string) bool {
	var b bool
	if json.Unmarshal(c[name], &b) != nil {
		return c.stringClaim(name) == "true"
	}
	return b
}

// maxDate bounds a NumericDate: the year 9999.
const maxDate = 253402300799

// dateClaim is a NumericDate (RFC 7519 §2). There and wrong is not ok.
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
	v, there := c[name]
	return there && string(v) != "null"
}

// claimRules are what a token's claims must satisfy.
type claimRules struct {
	// Set once.
	issuer            string // "": the claims come from the provider itself
	audience          []string
	authorizedParties []string
	usernameClaim     string
	scope             string
}

func (c Config) newRules() claimRules {
	return claimRules{
		issuer: c.Issuer, audience: slices.Clone(c.Audience), authorizedParties: slices.Clone(c.AuthorizedParties),
		usernameClaim: cmp.Or(c.UsernameClaim, DefaultClaim), scope: c.Scope,
	}
}

// checkClaims is whom the claims name, if they satisfy the rules.
func (r claimRules) checkClaims(c claims, now time.Time) (Subject, error) {
	subject, err := checkLifetime(c, now)
	switch {
	case err != nil:
		return Subject{}, err
	case r.issuer != "" && c.stringClaim("iss") != r.issuer:
		return Subject{}, invalidToken("issued by another provider")
	case r.issuer != "" && subject.Expires.IsZero():
		return Subject{}, invalidToken("no exp")
	case len(r.audience) > 0 && !intersect(r.audience, c.stringsClaim("aud")):
		return Subject{}, invalidToken("not for this audience")
	case len(r.authorizedParties) > 0 && !slices.Contains(r.authorizedParties, c.authorizedParty()):
		return Subject{}, invalidToken("given to another client")
	case r.scope != "" && !slices.Contains(c.scopes(), r.scope):
		return Subject{}, invalidToken("without the scope")
	case c.has("cnf"): // RFC 7800: whoever brings it must prove that it is theirs, and nobody can here
		return Subject{}, invalidToken("bound to a key")
	}
	if subject.Name = c.stringClaim(r.usernameClaim); subject.Name == "" {
		return Subject{}, invalidToken("without the user's name")
	}
	// Where users may change their address themselves, an unverified one is
	// whatever they like: somebody else's.
	if r.usernameClaim == "email" && c.has("email_verified") && !c.boolClaim("email_verified") {
		return Subject{}, invalidToken("the address is not verified")
	}
	return subject, nil
}

// checkLifetime is the part of the rules that every source of claims has to satisfy.
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

// authorizedParty is the client that the token was given to: azp in OpenID Connect,
// client_id in RFC 9068 and RFC 7662.
func (c claims) authorizedParty() string {
	return cmp.Or(c.stringClaim("azp"), c.stringClaim("client_id"))
}

// scopes are separated by spaces in scope (RFC 6749 §3.3); two big providers
// call them scp, and one of those has an array.
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
