package config

import (
	"net"
	"net/netip"
	"slices"
)

// checker finds what no key shows by itself.
type checker struct {
	*problems
	c *Config
}

func (k checker) all() {
	k.listeners()
	k.redis()
	k.names()
	k.auth()
	k.authHTTP()
	k.oauth()
	k.mechanisms()
	k.routing()
	k.backends()
	k.limits()
	k.audit()
}

func (k checker) listeners() {
	if len(k.c.Listeners) == 0 {
		k.add("listeners", "is empty: at least one is needed")
	}
	needsTLS := false
	for i, l := range k.c.Listeners {
		key := Indexed("listeners", i)
		needsTLS = needsTLS || l.TLS != "none"
		for j, other := range k.c.Listeners[:i] {
			if overlap(l.Address, other.Address) {
				k.add(Below(key, "address"), "%s cannot be listened on together with %s of listeners[%d]", quote(l.Address), quote(other.Address), j)
			} else if l.Name == other.Name {
				k.add(Below(key, "name"), "%s is the name of listeners[%d] already", quote(l.Name), j)
			}
		}
		if overlap(l.Address, k.c.Admin.Address) {
			k.add("admin.address", "%s cannot be listened on together with %s of %s", quote(k.c.Admin.Address), quote(l.Address), key)
		}
		if l.ProxyProtocol != nil && len(l.ProxyProtocol.Trusted) == 0 {
			k.add(key+".proxy_protocol.trusted", "is required: the networks whose PROXY header is believed")
		}
	}
	if needsTLS && len(k.c.TLS.Certificates) == 0 && k.c.TLS.Directory == "" {
		k.add("tls.certificates", "a listener has TLS, so at least one certificate is needed, here or in certificate_dir")
	}
	for i, c := range k.c.TLS.Certificates {
		k.pair(Indexed("tls.certificates", i), &c)
	}
}

// pair checks that a certificate that is there has both its files.
func (k checker) pair(key string, c *Certificate) {
	if c == nil {
		return
	}
	for name, file := range map[string]string{"cert": c.Cert, "key": c.Key} {
		if file == "" {
			k.add(Below(key, name), "is required")
		}
	}
}

func (k checker) auth() {
	methods := k.c.Auth.Methods
	if len(methods) == 0 {
		k.add("auth.methods", "is empty: at least one is needed")
	}
	for i, m := range methods {
		if m != "" && slices.Contains(methods[:i], m) {
			k.add(Indexed("auth.methods", i), "%s is there twice", m)
		}
	}
}

func (k checker) routing() {
	r := &k.c.Routing
	static := len(r.Static.Users) > 0 || len(r.Static.Domains) > 0 || r.Static.Default != ""
	if r.Source == "static" && !static {
		k.add("routing.static", "source: static needs users, domains or default: else nobody has a backend")
	}
	k.routesOf("users", r.Static.Users, func(name string) (string, bool) {
		u, err := k.c.Auth.Spelling.Canon(name)
		return u.String(), err == nil
	})
	k.routesOf("domains", r.Static.Domains, func(name string) (string, bool) {
		domain, err := k.c.Auth.Spelling.Domain(name)
		return domain, err == nil
	})
	if r.Static.Default != "" {
		k.knows("routing.static.default", r.Static.Default)
	}
}

// routesOf checks one table of static routes: names that can exist, each once
// in all its spellings, to backends that exist.
func (k checker) routesOf(table string, routes map[string]string, canon func(string) (string, bool)) {
	names := make([]string, 0, len(routes))
	for name := range routes {
		names = append(names, name)
	}
	slices.Sort(names)
	seen := make(map[string]string)
	for _, name := range names {
		key := Below("routing.static."+table, name)
		same, ok := canon(name)
		if other, twice := seen[same]; !ok {
			k.add(key, "no account can have this name")
			continue
		} else if twice {
			k.add(key, "is another spelling of %s", quote(other))
		}
		seen[same] = name
		k.knows(key, routes[name])
	}
}

func (k checker) knows(key, backend string) {
	if _, ok := k.c.Backends[backend]; !ok && len(k.c.Backends) > 0 { // none at all is said once, elsewhere
		k.add(key, "there is no backend %s", quote(backend))
	}
}

func (k checker) backends() {
	if len(k.c.Backends) == 0 {
		k.add("backends", "at least one is needed")
	}
	for name, b := range k.c.Backends {
		key := Below("backends", name)
		if !nameForm(name) {
			k.add(key, "is not a name of 1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit")
		}
		if b.Address == "" {
			k.add(Below(key, "address"), "is required")
		} else if i := k.ownListener(b.Address); i >= 0 {
			k.add(Below(key, "address"), "%s is listeners[%d], this gateway itself", quote(b.Address), i)
		}
		if b.TLS == "none" && (b.CA != "" || b.ServerName != "" || b.ClientCertificate != nil) {
			k.add(key, "ca, server_name and client_certificate are used only with TLS")
		}
		k.pair(Below(key, "client_certificate"), b.ClientCertificate)
		k.login(key, b)
	}
}

func (k checker) login(key string, b Backend) {
	if b.Login != "master" {
		return // a master that waits for its day is no mistake
	}
	if b.Master.User == "" {
		k.add(key+".master.user", "is required with login: master")
	}
	// The master's password opens every mailbox; somebody must have checked
	// the client's own first.
	if slices.Equal(k.c.Auth.Methods, []string{"passthrough"}) && k.c.Auth.External.SAN == "" {
		k.add(Below(key, "login"), "master needs an auth method that checks passwords here: with passthrough alone anybody could log in as anybody")
	}
}

// ownListener is the index of the listener that address leads to, or -1. Names
// are not resolved; a loop through one is ended by the hop limit.
func (k checker) ownListener(address string) int {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return -1
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	return slices.IndexFunc(k.c.Listeners, func(l Listener) bool {
		listens, listenPort, err := net.SplitHostPort(l.Address)
		if err != nil || port != listenPort {
			return false
		}
		return host == listens || listens == "localhost" && host == "127.0.0.1" || wildcard(listens) && local(host)
	})
}

// local says whether host is an address of this machine.
func local(host string) bool {
	a, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	own, _ := net.InterfaceAddrs() // none: then only loopback is known
	return slices.ContainsFunc(own, func(n net.Addr) bool {
		p, err := netip.ParsePrefix(n.String())
		return err == nil && p.Addr() == a
	})
}

// overlap says whether two addresses cannot be listened on at once.
func overlap(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB || portA == "0" {
		return false
	}
	return hostA == hostB || covers(hostA, hostB) || covers(hostB, hostA)
}

// covers says whether listening on all of wild's family includes host. "::" and
// "" are both families.
func covers(wild, host string) bool {
	if wild == "0.0.0.0" {
		a, err := netip.ParseAddr(host)
		return err != nil || a.Is4() || a.IsUnspecified()
	}
	return wildcard(wild)
}

func wildcard(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "" || err == nil && a.IsUnspecified()
}

// loopback says whether only this machine can connect to address. Switched off
// is safe too.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || host == "localhost" {
		return true // not an address: that was said already
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
