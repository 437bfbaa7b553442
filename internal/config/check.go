package config

import (
	"cmp"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/sanitize"
	"imapgate/proxy/upstream"
	"imapgate/routing"
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

// rule is a condition that a configuration must not fulfil.
type rule struct {
	isBroken  bool
	key, text string
}

func (c checker) checkRules(rules ...rule) {
	for _, r := range rules {
		if r.isBroken {
			c.add(r.key, "%s", r.text)
		}
	}
}

func (c checker) checkListeners() {
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
	c.checkRules(
		rule{len(c.cfg.Listeners) == 0, "listeners", "is empty: at least one is needed"},
		rule{needsTLS && len(c.cfg.TLS.Certificates) == 0 && c.cfg.TLS.CertificateDir == "",
			"tls.certificates", "a listener has TLS, so at least one certificate is needed, here or in certificate_dir"},
	)
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
	c.checkRules(rule{len(c.cfg.Auth.Methods) == 0, "auth.methods", "is empty: at least one is needed"})
	c.checkUnique("auth.methods", c.cfg.Auth.Methods)
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
	seen := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(routes)) {
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
	c.checkRules(rule{len(c.cfg.Backends) == 0, "backends", "at least one is needed"})
	for name, b := range c.cfg.Backends {
		key := MemberKey("backends", name)
		c.checkRules(rule{!isBackendName(name), key, "is not a name of 1 to 63 characters of a-z, 0-9, - and _ that begins with a letter or digit"})
		c.checkAddresses(key, b)
		c.checkRules(rule{sanitize.ASCII(b.Maintenance, maxMaintenance) != b.Maintenance, MemberKey(key, "maintenance"), "must be printable ASCII of at most 200 characters: IMAP sends it in one line"})
		c.checkHealth(MemberKey(key, "health"), b.Health)
		usesTLS := b.CA != "" || b.ServerName != "" || b.ClientCertificate != nil
		c.checkRules(rule{b.TLS == event.NoTLS && usesTLS, key, "ca, server_name and client_certificate are used only with TLS"})
		c.checkKeyPair(MemberKey(key, "client_certificate"), b.ClientCertificate)
		c.checkBackendLogin(key, b)
	}
}

const (
	maxMaintenance    = 200                    // bytes of the text of maintenance
	maxAddresses      = 64                     // of one backend
	minHealthInterval = 100 * time.Millisecond // between two checks of an address
)

// checkAddresses checks where a backend is.
func (c checker) checkAddresses(key string, b Backend) {
	list := MemberKey(key, "addresses")
	switch {
	case b.Address == "" && b.Addresses == nil:
		c.add(MemberKey(key, "address"), "is required, or addresses")
	case b.Address != "" && b.Addresses != nil:
		c.add(list, "cannot be given together with address")
	case b.Address != "":
		c.checkAddress(MemberKey(key, "address"), b.Address)
	}
	c.checkRules(
		rule{b.Addresses != nil && len(b.Addresses) == 0, list, "is empty: at least one is needed"},
		rule{len(b.Addresses) > maxAddresses, list, "has more than 64 entries"},
	)
	seen := make(map[string]bool)
	for i, a := range b.Addresses {
		item := ItemKey(list, i)
		name := strings.ToLower(cmp.Or(a.Address, a.SRV))
		switch {
		case (a.Address == "") == (a.SRV == ""):
			c.add(item, "needs either address or srv")
		case seen[name]:
			c.add(item, "%s is there twice", quote(name))
		case a.Address != "":
			c.checkAddress(MemberKey(item, "address"), a.Address)
		case a.Priority != 1 || a.Weight != 1:
			c.add(item, "priority and weight are for address: those of an srv entry come from DNS")
		}
		seen[name] = true
	}
}

// checkHealth checks that health checks have what they need, and nothing that they ignore.
func (c checker) checkHealth(key string, h upstream.HealthSettings) {
	isLogin := h.Check == event.CheckLogin
	c.checkRules(
		rule{h.Interval > 0 && h.Interval < minHealthInterval, MemberKey(key, "interval"), "is less than 100ms; 0s turns the checks off"},
		rule{isLogin && h.User == "", MemberKey(key, "user"), "is required with check: login"},
		rule{isLogin && h.PasswordFile == "", MemberKey(key, "password_file"), "is required with check: login"},
		rule{!isLogin && h.User != "", MemberKey(key, "user"), "is used only with check: login"},
		rule{!isLogin && h.PasswordFile != "", MemberKey(key, "password_file"), "is used only with check: login"},
	)
}

func (c checker) checkAddress(key, address string) {
	if i := c.listenerAt(address); i >= 0 {
		c.add(key, "%s is listeners[%d], this gateway itself", quote(address), i)
	}
}

func (c checker) checkBackendLogin(key string, b Backend) {
	if b.Login != "master" {
		return // an unused master block is valid
	}
	// The master's password opens every mailbox, so the client's own credentials must be
	// verified first.
	isUnverified := slices.Equal(c.cfg.Auth.Methods, []string{"passthrough"}) && c.cfg.Auth.External.SAN == ""
	c.checkRules(
		rule{b.Master.User == "", key + ".master.user", "is required with login: master"},
		rule{isUnverified, MemberKey(key, "login"), "master needs an auth method that verifies passwords here: with passthrough alone anyone could log in as any user"},
	)
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

// minRate lets a full buffer pass well before a peer counts as stalled. Bytes per
// second.
const minRate = 16 << 10

func (c checker) checkLimits() {
	l := &c.cfg.Limits
	c.checkRules(
		rule{l.TLSHandshakeTimeout > l.PreauthTimeout, "limits.tls_handshake_timeout", "is longer than preauth_timeout, which includes it"},
		rule{l.Failures.Delay > l.Failures.MaxDelay, "limits.failures.delay", "is longer than max_delay"},
		rule{l.Failures.BanDuration > l.Failures.MaxBanDuration, "limits.failures.ban_duration", "is longer than max_ban_duration"},
	)
	c.checkQuota("limits.user_quota", l.UserQuota)
	for i, listener := range c.cfg.Listeners {
		if listener.Limits == nil {
			continue
		}
		key := MemberKey(ItemKey("listeners", i), "limits")
		own := c.cfg.LimitsOf(listener)
		if f := own.Failures; f != l.Failures && f.Delay > f.MaxDelay {
			c.add(key+".failures.delay", "is longer than max_delay")
		}
		if own.UserQuota != l.UserQuota {
			c.checkQuota(key+".user_quota", own.UserQuota)
		}
	}
}

func (c checker) checkQuota(key string, b limit.Quotas) {
	for name, rate := range map[string]int{"bytes_in_per_second": b.BytesInPerSecond, "bytes_out_per_second": b.BytesOutPerSecond} {
		if rate > 0 && rate < minRate {
			c.add(MemberKey(key, name), "is less than 16384: at such a rate a session would count as stalled")
		}
	}
}

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

func (c checker) checkAudit() {
	a := &c.cfg.Audit
	if len(a.Sinks) > 0 && a.Path != "" && a.Path != "-" {
		c.add("audit.path", "cannot be combined with sinks: add the file to sinks instead")
	}
	names := make(map[string]bool)
	for i, s := range a.Sinks {
		key, name := ItemKey("audit.sinks", i), cmp.Or(s.Name, s.Type)
		if names[name] {
			c.add(MemberKey(key, "name"), "%s is already the name of another sink", quote(name))
		}
		names[name] = true
		c.checkSink(key, s)
	}
}

// checkSink checks that a sink has what its type needs, and nothing that it ignores.
func (c checker) checkSink(key string, s audit.SinkSettings) {
	switch {
	case s.Type == "":
		c.add(MemberKey(key, "type"), "is required")
	case s.Type == "file" && s.Path == "":
		c.add(MemberKey(key, "path"), "is required with type: file")
	case s.Type == "syslog" && s.Address == "":
		c.add(MemberKey(key, "address"), "is required with type: syslog")
	case s.Type == "redis" && c.cfg.Redis == nil:
		c.add(MemberKey(key, "type"), "is redis, but there is no redis block")
	}
	for _, setting := range []struct{ name, value, kind string }{
		{"path", s.Path, "file"}, {"address", s.Address, "syslog"}, {"format", s.Format, "syslog"}, {"stream", s.Stream, "redis"},
	} {
		if setting.value != "" && s.Type != setting.kind && s.Type != "" {
			c.add(MemberKey(key, setting.name), "is for type: %s", setting.kind)
		}
	}
	if (s.CA != "" || s.ServerName != "" || s.ClientCertificate != nil) && !strings.HasPrefix(s.Address, "tls://") {
		c.add(key, "ca, server_name and client_certificate are used only with tls://")
	}
	c.checkKeyPair(MemberKey(key, "client_certificate"), s.ClientCertificate)
}

func checkSyslogAddress(s string) string {
	network, address, _ := strings.Cut(s, "://")
	switch {
	case network == "unix" && strings.HasPrefix(address, "/"):
		return ""
	case !slices.Contains([]string{"tcp", "tls"}, network):
		return quote(s) + " is not unix:///path, tcp://host:port or tls://host:port"
	}
	return checkFormat("dial", address)
}

const sentinelPasswordKey = "redis.sentinel_password_file"

func (c checker) checkRedis() {
	r := c.cfg.Redis
	if r == nil {
		i := slices.Index(c.cfg.Auth.Methods, "redis")
		c.checkRules(
			rule{c.cfg.Routing.Source == "redis", "routing.source", "is redis, but there is no redis block"},
			rule{i >= 0, ItemKey("auth.methods", i), "is redis, but there is no redis block"},
		)
		return
	}
	switch {
	case len(r.Addresses) == 0:
		c.add("redis.addresses", "is empty: at least one is needed")
	case r.Cluster && r.SentinelMaster != "":
		c.add("redis.sentinel_master", "is for servers with sentinels, not for a cluster")
	case len(r.Addresses) > 1 && !r.Cluster && r.SentinelMaster == "":
		c.add("redis.addresses", "several addresses need cluster: true or sentinel_master")
	}
	c.checkRules(
		rule{r.Cluster && r.Database > 0, "redis.database", "is for one server or sentinels: a cluster has database 0 only"},
		rule{r.SentinelUsername != "" && r.SentinelMaster == "", "redis.sentinel_username", "is used only with sentinel_master"},
		rule{r.SentinelPasswordFile != "" && r.SentinelMaster == "", sentinelPasswordKey, "is used only with sentinel_master"},
		rule{r.CA != "" && !r.TLS, "redis.ca", "is used only with tls: true"},
		rule{r.ServerName != "" && !r.TLS, "redis.server_name", "is used only with tls: true"},
		rule{r.ClientCertificate != nil && !r.TLS, "redis.client_certificate", "is used only with tls: true"},
	)
	for i, address := range r.Addresses {
		c.checkRedisSocket(ItemKey("redis.addresses", i), address)
	}
	c.checkKeyPair("redis.client_certificate", r.ClientCertificate)
}

// checkRedisSocket refuses a unix socket where Redis cannot use one.
func (c checker) checkRedisSocket(key, address string) {
	if !strings.HasPrefix(address, unixScheme) {
		return
	}
	switch r := c.cfg.Redis; {
	case r.Cluster || r.SentinelMaster != "":
		c.add(key, "a unix socket leads to one server: the nodes of a cluster and sentinels are host:port")
	case r.TLS:
		c.add(key, "Redis does not support TLS on a unix socket: leave out tls")
	}
}

// readRedis reads the passwords of the servers and of the sentinels.
func (s secrets) readRedis(r *routing.RedisSettings) {
	const server, sentinel = "IMAPGATE_REDIS_PASSWORD", "IMAPGATE_REDIS_SENTINEL_PASSWORD"
	r.Password = s.readSecret("redis.password_file", r.PasswordFile, server)
	if r.SentinelMaster == "" {
		return // without sentinels the variable is ignored
	}
	r.SentinelPassword = s.readSecret(sentinelPasswordKey, r.SentinelPasswordFile, sentinel)
	if r.SentinelUsername != "" && r.SentinelPassword.IsZero() {
		s.add("redis.sentinel_username", "needs sentinel_password_file or %s", sentinel)
	}
}
