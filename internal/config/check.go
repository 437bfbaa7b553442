package config

import (
	"net"
	"net/netip"
	"slices"

	"imapgate/internal/event"
	"imapgate/tlsconf"
)

// checker finds problems that involve several keys.
type checker struct {
	*problems
	cfg *Config
}

func (c checker) checkAll() {
	c.checkListeners()
	c.checkRedis()
	c.checkNames()
	c.checkAuth()
	c.checkAuthHTTP()
	c.checkOAuth()
	c.checkMechanisms()
	c.checkRouting()
	c.checkBackends()
	c.checkLimits()
	c.checkAudit()
}

func (c checker) checkListeners() {
	if len(c.cfg.Listeners) == 0 {
		c.add("listeners", "is empty: at least one is needed")
	}
	needsTLS := false
	for i, l := range c.cfg.Listeners {
		key := ItemKey("listeners", i)
		needsTLS = needsTLS || l.TLS != event.NoTLS
		for j, other := range c.cfg.Listeners[:i] {
			if addressesOverlap(l.Address, other.Address) {
				c.add(MemberKey(key, "address"), "%s cannot be listened on together with %s of listeners[%d]", quote(l.Address), quote(other.Address), j)
			} else if l.Name == other.Name {
				c.add(MemberKey(key, "name"), "%s is already the name of listeners[%d]", quote(l.Name), j)
			}
		}
		if addressesOverlap(l.Address, c.cfg.Admin.Address) {
			c.add("admin.address", "%s cannot be listened on together with %s of %s", quote(c.cfg.Admin.Address), quote(l.Address), key)
		}
		if l.ProxyProtocol != nil && len(l.ProxyProtocol.Trusted) == 0 {
			c.add(key+".proxy_protocol.trusted", "is required: the networks whose PROXY header is trusted")
		}
	}
	if needsTLS && len(c.cfg.TLS.Certificates) == 0 && c.cfg.TLS.CertificateDir == "" {
		c.add("tls.certificates", "a listener has TLS, so at least one certificate is needed, here or in certificate_dir")
	}
	for i, cert := range c.cfg.TLS.Certificates {
		c.checkKeyPair(ItemKey("tls.certificates", i), &cert)
	}
}

// checkKeyPair checks that a certificate, if present, has both its files.
func (c checker) checkKeyPair(key string, cert *tlsconf.CertFiles) {
	if cert == nil {
		return
	}
	for name, file := range map[string]string{"cert": cert.Cert, "key": cert.Key} {
		if file == "" {
			c.add(MemberKey(key, name), "is required")
		}
	}
}

func (c checker) checkAuth() {
	methods := c.cfg.Auth.Methods
	if len(methods) == 0 {
		c.add("auth.methods", "is empty: at least one is needed")
	}
	for i, m := range methods {
		if m != "" && slices.Contains(methods[:i], m) {
			c.add(ItemKey("auth.methods", i), "duplicate value %s", m)
		}
	}
}

func (c checker) checkRouting() {
	r := &c.cfg.Routing
	static := len(r.Static.Users) > 0 || len(r.Static.Domains) > 0 || r.Static.Default != ""
	if r.Source == "static" && !static {
		c.add("routing.static", "source: static needs users, domains or default: without them no user has a backend")
	}
	c.checkStaticRoutes("users", r.Static.Users, func(name string) (string, bool) {
		u, err := c.cfg.Auth.NameRules.Canonicalize(name)
		return u.String(), err == nil
	})
	c.checkStaticRoutes("domains", r.Static.Domains, func(name string) (string, bool) {
		domain, err := c.cfg.Auth.NameRules.CanonicalizeDomain(name)
		return domain, err == nil
	})
	if r.Static.Default != "" {
		c.checkBackendName("routing.static.default", r.Static.Default)
	}
}

// checkStaticRoutes checks one table of static routes: the names must be valid and
// unique in their canonical form, and the backends must exist.
func (c checker) checkStaticRoutes(table string, routes map[string]string, canon func(string) (string, bool)) {
	names := make([]string, 0, len(routes))
	for name := range routes {
		names = append(names, name)
	}
	slices.Sort(names)
	seen := make(map[string]string)
	for _, name := range names {
		key := MemberKey("routing.static."+table, name)
		canonical, ok := canon(name)
		if other, duplicate := seen[canonical]; !ok {
			c.add(key, "is not a valid name")
			continue
		} else if duplicate {
			c.add(key, "is another spelling of %s", quote(other))
		}
		seen[canonical] = name
		c.checkBackendName(key, routes[name])
	}
}

func (c checker) checkBackendName(key, backend string) {
	if _, ok := c.cfg.Backends[backend]; !ok && len(c.cfg.Backends) > 0 { // an empty map is reported elsewhere, once
		c.add(key, "there is no backend %s", quote(backend))
	}
}

func (c checker) checkBackends() {
	if len(c.cfg.Backends) == 0 {
		c.add("backends", "at least one is needed")
	}
	for name, b := range c.cfg.Backends {
		key := MemberKey("backends", name)
		if !isBackendName(name) {
			c.add(key, "is not a name of 1 to 63 characters of a-z, 0-9, - and _ that begins with a letter or digit")
		}
		if b.Address == "" {
			c.add(MemberKey(key, "address"), "is required")
		} else if i := c.listenerAt(b.Address); i >= 0 {
			c.add(MemberKey(key, "address"), "%s is listeners[%d], this gateway itself", quote(b.Address), i)
		}
		if b.TLS == event.NoTLS && (b.CA != "" || b.ServerName != "" || b.ClientCertificate != nil) {
			c.add(key, "ca, server_name and client_certificate are used only with TLS")
		}
		c.checkKeyPair(MemberKey(key, "client_certificate"), b.ClientCertificate)
		c.checkBackendLogin(key, b)
	}
}

func (c checker) checkBackendLogin(key string, b Backend) {
	if b.Login != "master" {
		return // an unused master block is valid
	}
	if b.Master.User == "" {
		c.add(key+".master.user", "is required with login: master")
	}
	// The master's password opens every mailbox, so the client's own credentials must be
	// verified first.
	if slices.Equal(c.cfg.Auth.Methods, []string{"passthrough"}) && c.cfg.Auth.External.SAN == "" {
		c.add(MemberKey(key, "login"), "master needs an auth method that verifies passwords here: with passthrough alone anyone could log in as any user")
	}
}

// listenerAt returns the index of the listener that address leads to, or -1. Names
// are not resolved; the hop limit ends a loop through one.
func (c checker) listenerAt(address string) int {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return -1
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	return slices.IndexFunc(c.cfg.Listeners, func(l Listener) bool {
		listenHost, listenPort, err := net.SplitHostPort(l.Address)
		if err != nil || port != listenPort {
			return false
		}
		return host == listenHost || listenHost == "localhost" && host == "127.0.0.1" || isWildcard(listenHost) && isLocal(host)
	})
}

// isLocal reports whether host is an address of this machine.
func isLocal(host string) bool {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	addrs, _ := net.InterfaceAddrs() // on error only loopback is recognized
	return slices.ContainsFunc(addrs, func(n net.Addr) bool {
		p, err := netip.ParsePrefix(n.String())
		return err == nil && p.Addr() == a
	})
}

// addressesOverlap reports whether listening on both addresses at once is
// impossible.
func addressesOverlap(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || coversHost(hostA, hostB) || coversHost(hostB, hostA)
}

// coversHost reports whether listening on listenHost includes host. "::" and ""
// listen on both address families.
func coversHost(listenHost, host string) bool {
	if listenHost == "0.0.0.0" {
		a, err := netip.ParseAddr(host)
		return err != nil || a.Is4() || a.IsUnspecified()
	}
	return isWildcard(listenHost)
}

func isWildcard(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

// isLoopback reports whether only this machine can connect to address. An empty
// address, which disables the listener, is safe too.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "localhost" {
		return true // not an address, which is reported elsewhere
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
