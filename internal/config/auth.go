package config

import (
	"slices"
	"strings"
)

// checkMechanisms checks the keys of mechanisms. Package auth checks whether the
// methods can serve them.
func (c checker) checkMechanisms() {
	a := &c.cfg.Auth
	if a.External.SAN != "" && c.cfg.TLS.ClientCA == "" {
		c.add("auth.external.san", "needs tls.client_ca: without it no client certificate is requested")
	}
	c.checkUnique("auth.mechanisms", a.Mechanisms)
	for i, l := range c.cfg.Listeners {
		key := MemberKey(ItemKey("listeners", i), "mechanisms")
		c.checkUnique(key, l.Mechanisms)
		for j, name := range l.Mechanisms {
			if len(a.Mechanisms) > 0 && !slices.Contains(a.Mechanisms, name) {
				c.add(ItemKey(key, j), "%s is not among auth.mechanisms", name)
			}
		}
	}
}

func (c checker) checkUnique(key string, names []string) {
	for i, name := range names {
		if name != "" && slices.Contains(names[:i], name) {
			c.add(ItemKey(key, i), "duplicate value %s", name)
		}
	}
}

const scramSecretKey = "auth.scram_secret_file"

// readSCRAM reads the secret of the SCRAM mechanisms, and reports a missing one if
// they are configured.
func (s secrets) readSCRAM(a *Auth) {
	const key, variable = scramSecretKey, "IMAPGATE_SCRAM_SECRET"
	a.SCRAMSecret = s.readSecret(key, a.SCRAMSecretFile, variable)
	needed := slices.ContainsFunc(a.Mechanisms, func(name string) bool { return strings.HasPrefix(name, "SCRAM") })
	switch n := len(a.SCRAMSecret.Reveal()); {
	case n == 0 && needed:
		s.add(key, "SCRAM needs scram_secret_file or %s", variable)
	case n > 0 && n < minTokenLength:
		s.add(key, "the secret has fewer than %d characters", minTokenLength)
	}
}
