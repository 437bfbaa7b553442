package config

import (
	"cmp"
	"slices"
	"strings"

	"imapgate/internal/audit"
)

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

// checkSyslogAddress checks the address of a syslog server.
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
