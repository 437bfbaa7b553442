package config

import (
	"errors"

	"imapgate/internal/identity"
)

// AuthNames configures which user names are valid.
type AuthNames struct {
	Characters string            `yaml:"characters" example:"+'" doc:"Characters of + ' & = that names may have before the @, besides a-z, 0-9 and . - _. No other can be allowed: each has a meaning in a key, a path, a pattern, a quotation or a master login. The backend must allow them too: auth_username_chars of Dovecot."`
	UTF8       bool              `yaml:"utf8" default:"false" doc:"Names may have letters and digits of all scripts (RFC 6531). They are compared and sent in the form of RFC 8265 (lower case, NFC); the part after the @ in its ASCII form, as in the DNS (xn--…)."`
	Detail     string            `yaml:"detail" default:"keep" oneof:"keep strip" doc:"keep: + is an ordinary character, which characters may allow. strip: alice+lists@example.org becomes alice@example.org."`
	Prefixes   map[string]string `yaml:"prefixes" example:"{CORP: corp.example.org}" doc:"For names such as CORP\\alice: the part before the backslash, in any case, and the domain it stands for. An empty domain removes the prefix, and the rest is read as a name without one. Names with another prefix are refused."`
}

// checkNames sets auth.NameRules from auth.default_domain and auth.names.
func (c checker) checkNames() {
	a := &c.cfg.Auth
	names, err := identity.NewNames(identity.NameRules{
		Domain: a.DefaultDomain, Characters: a.Names.Characters, UTF8: a.Names.UTF8,
		StripDetail: a.Names.Detail == "strip", Prefixes: a.Names.Prefixes,
	})
	var ruleErr *identity.NameRulesError
	switch {
	case err == nil:
		a.NameRules = names
	case !errors.As(err, &ruleErr):
		c.add("auth.names", "%v", err)
	case ruleErr.Field == "domain": // its form has been checked already
	default:
		c.add("auth.names."+ruleErr.Field, "%s", ruleErr.Reason)
	}
	for name, b := range c.cfg.Backends {
		if _, err := a.NameRules.Canonicalize("a" + b.Master.Separator + "b"); err == nil {
			c.add(MemberKey("backends", name)+".master.separator", "%s may be part of a user name", quote(b.Master.Separator))
		}
	}
}
