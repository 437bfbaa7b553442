package config

import (
	"errors"

	"imapgate/internal/identity"
)

// AuthNames says which user names there are.
type AuthNames struct {
	Characters string            `yaml:"characters" example:"+'" doc:"Characters of + ' & = that names may have before the @, besides a-z, 0-9 and . - _. No other can be allowed: each means something in a key, a path, a pattern, a quotation or a master login. The backend has to allow them too: auth_username_chars of Dovecot."`
	UTF8       bool              `yaml:"utf8" default:"false" doc:"Names may have letters and digits of all scripts (RFC 6531). They are compared and sent in the form of RFC 8265 (lower case, NFC); the part after the @ in its ASCII form, as in the DNS (xn--…)."`
	Detail     string            `yaml:"detail" default:"keep" oneof:"keep strip" doc:"keep: + is a character as any other, which characters may allow. strip: alice+lists@example.org is alice@example.org."`
	Prefixes   map[string]string `yaml:"prefixes" example:"{CORP: corp.example.org}" doc:"For names as CORP\\alice: what stands before the backslash, in any case, and the domain that it stands for. Empty: the prefix is taken off, and the rest is read as a name without one. Names with another prefix are refused."`
}

// names makes auth.Spelling of auth.default_domain and auth.names.
func (k checker) names() {
	a := &k.c.Auth
	names, err := identity.NewNames(identity.Spelling{
		Domain: a.DefaultDomain, Characters: a.Names.Characters, UTF8: a.Names.UTF8,
		StripDetail: a.Names.Detail == "strip", Prefixes: a.Names.Prefixes,
	})
	var wrong *identity.SpellingError
	switch {
	case err == nil:
		a.Spelling = names
	case !errors.As(err, &wrong):
		k.add("auth.names", "%v", err)
	case wrong.Field == "domain": // its own form was checked already
	default:
		k.add("auth.names."+wrong.Field, "%s", wrong.Why)
	}
	for name, b := range k.c.Backends {
		if _, err := a.Spelling.Canon("a" + b.Master.Separator + "b"); err == nil {
			k.add(Below("backends", name)+".master.separator", "%s may be part of a user name", quote(b.Master.Separator))
		}
	}
}
