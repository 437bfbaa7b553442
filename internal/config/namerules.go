package config

import (
	"errors"

	"imapgate/internal/identity"
)

// checkNames sets auth.NameRules from auth.default_domain and auth.names.
func (c checker) checkNames() {
	a := &c.cfg.Auth
	rules := a.Names
	rules.Domain = a.DefaultDomain
	names, err := identity.NewNames(rules)
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
