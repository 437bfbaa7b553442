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

// text is a claim that is a string; "" when it is missing or none.
func (c claims) text(name string) string {
	var s string
	if json.Unmarshal(c[name], &s) != nil {
		return ""
	}
	return s
}

// list is a claim that is a string or an array of strings, as aud may be.
func (c claims) list(name string) []string {
	if s := c.text(name); s != "" {
		return []string{s}
	}
	var several []string
	if json.Unmarshal(c[name], &several) != nil {
		return nil
	}
	return several
}

// flag is a claim that is true or false; some providers write it as a string.
func (c claims) flag(name string) bool {
	var b bool
	if json.Unmarshal(c[name], &b) != nil {
		return c.text(name) == "true"
	}
	return b
}

// maxDate bounds a NumericDate: the year 9999.
const maxDate = 253402300799

// date is a NumericDate (RFC 7519 §2). There and wrong is not ok.
func (c claims) date(name string) (at time.Time, ok bool) {
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

// rules are what a token's claims must satisfy.
type rules struct {
	// Set once.
	issuer   string // "": the claims come from the provider itself
	audience []string
	parties  []string
	claim    string
	scope    string
}

func (c Config) rules() rules {
	return rules{
		issuer: c.Issuer, audience: slices.Clone(c.Audience), parties: slices.Clone(c.Parties),
		claim: cmp.Or(c.Claim, DefaultClaim), scope: c.Scope,
	}
}

// subject is whom the claims name, if they satisfy the rules.
func (r rules) subject(c claims, now time.Time) (Subject, error) {
	who, err := lifetime(c, now)
	switch {
	case err != nil:
		return Subject{}, err
	case r.issuer != "" && c.text("iss") != r.issuer:
		return Subject{}, invalid("issued by another provider")
	case r.issuer != "" && who.Expires.IsZero():
		return Subject{}, invalid("no exp")
	case len(r.audience) > 0 && !meet(r.audience, c.list("aud")):
		return Subject{}, invalid("not for this audience")
	case len(r.parties) > 0 && !slices.Contains(r.parties, c.party()):
		return Subject{}, invalid("given to another client")
	case r.scope != "" && !slices.Contains(c.scopes(), r.scope):
		return Subject{}, invalid("without the scope")
	case c.has("cnf"): // RFC 7800: whoever brings it must prove that it is theirs, and nobody can here
		return Subject{}, invalid("bound to a key")
	}
	if who.Name = c.text(r.claim); who.Name == "" {
		return Subject{}, invalid("without the user's name")
	}
	// Where users may change their address themselves, an unverified one is
	// whatever they like: somebody else's.
	if r.claim == "email" && c.has("email_verified") && !c.flag("email_verified") {
		return Subject{}, invalid("the address is not verified")
	}
	return who, nil
}

// lifetime is the part of the rules that every source of claims has to satisfy.
func lifetime(c claims, now time.Time) (Subject, error) {
	expires, ok := c.date("exp")
	if !ok || !expires.IsZero() && !now.Before(expires.Add(Leeway)) {
		return Subject{}, invalid("expired")
	}
	begins, ok := c.date("nbf")
	if !ok || now.Before(begins.Add(-Leeway)) {
		return Subject{}, invalid("not valid yet")
	}
	return Subject{Expires: expires}, nil
}

// party is the client that the token was given to: azp in OpenID Connect,
// client_id in RFC 9068 and RFC 7662.
func (c claims) party() string { return cmp.Or(c.text("azp"), c.text("client_id")) }

// scopes are separated by spaces in scope (RFC 6749 §3.3); two big providers
// call them scp, and one of those has an array.
func (c claims) scopes() []string {
	var all []string
	for _, s := range append(c.list("scope"), c.list("scp")...) {
		all = append(all, strings.Fields(s)...)
	}
	return all
}

func meet(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}
