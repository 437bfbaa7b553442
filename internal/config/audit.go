package config

import (
	"slices"
	"strings"

	"imapgate/tlsconf"
)

// Audit is the audit log.
type Audit struct {
	Path           string      `yaml:"path" default:"-" file:"own" form:"audit" doc:"A file or FIFO; - is standard output; empty keeps no audit log. If the file is renamed, a new one is created. Short for one entry of sinks; leave it out if there are sinks."`
	OnFailure      string      `yaml:"on_failure" default:"block" oneof:"block drop" doc:"When records cannot be written. block: refuse new logins, live sessions continue. drop: continue, and count the lost records."`
	Commands       string      `yaml:"commands" default:"none" oneof:"none writes all" doc:"Which commands of clients are recorded, in the modes that parse commands: none, those that may change something, or all. The content of messages is never recorded. A session that is spliced has no command records."`
	FirstPerMinute int         `yaml:"first_per_minute" default:"10" min:"0" max:"1000000" doc:"For connections that end without a login, and for logins refused before their password is checked: how many per address, reason and minute have a record of their own. The others are counted in one record at the end of the minute. 0: each has its own."`
	Chain          bool        `yaml:"chain" default:"false" doc:"Number the records of regular files and chain them by hashes, so that imapgate audit verify finds changed and removed records."`
	Sinks          []AuditSink `yaml:"sinks" doc:"The destinations of records, if there are several or if it is not a file. Each has its own buffer of 10,000 records; one that is slow or down does not delay the others."`
}

// AuditSink is one destination of the audit log.
type AuditSink struct {
	Type       string `yaml:"type" form:"required" oneof:"file stdout syslog redis" doc:"The type of the sink."`
	Name       string `yaml:"name" form:"label" doc:"Its name in logs and metrics. Default: the type."`
	Path       string `yaml:"path" file:"own" form:"path" example:"/var/log/imapgate/audit.log" doc:"For type: file. A file or FIFO."`
	Address    string `yaml:"address" form:"syslog" example:"tls://logs.internal:6514" doc:"For type: syslog. unix:///dev/log, tcp://host:port or tls://host:port. See format."`
	Format     string `yaml:"format" oneof:"rfc3164 rfc5424" doc:"For type: syslog. rfc3164: as syslog(3) writes it; on TCP and TLS, one line for each record. rfc5424: on TCP and TLS, with the length before each record. Default: rfc3164 for unix://, which local servers expect; rfc5424 for tcp:// and tls://."`
	CA         string `yaml:"ca" file:"tls" doc:"For tls://. PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" doc:"For tls://. The name its certificate must have. Default: the host in address."`

	ClientCertificate *tlsconf.CertFiles `yaml:"client_certificate" doc:"For tls://. Presented to a server that requests one."`

	Facility   string   `yaml:"facility" default:"authpriv" oneof:"kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock local0 local1 local2 local3 local4 local5 local6 local7" doc:"For type: syslog."`
	Stream     string   `yaml:"stream" form:"label" doc:"For type: redis. The key of a stream in the Redis of the redis block, whose account must be allowed XADD on it. Default: redis.prefix followed by audit."`
	MaxRecords int      `yaml:"max_records" default:"100000" min:"100" max:"100000000" doc:"For type: redis. The approximate number of records that the stream keeps."`
	Events     []string `yaml:"events" set:"Event" example:"[login_refused, ban_added]" doc:"The only events that this sink gets. Left out: all."`
	Results    []string `yaml:"results" set:"Result record" example:"[refused, unavailable]" doc:"The only results that this sink gets; records without a result are not filtered. Left out: all."`
	OnFailure  string   `yaml:"on_failure" oneof:"block drop" doc:"As above, for this sink. Default: audit.on_failure."`
}

// displayName is the sink's name, or its type if it has none.
func (a AuditSink) displayName() string {
	if a.Name == "" {
		return a.Type
	}
	return a.Name
}

func (c checker) checkAudit() {
	a := &c.cfg.Audit
	if len(a.Sinks) > 0 && a.Path != "" && a.Path != "-" {
		c.add("audit.path", "cannot be combined with sinks: add the file to sinks instead")
	}
	names := make(map[string]bool)
	for i, s := range a.Sinks {
		key := ItemKey("audit.sinks", i)
		if names[s.displayName()] {
			c.add(MemberKey(key, "name"), "%s is already the name of another sink", quote(s.displayName()))
		}
		names[s.displayName()] = true
		c.checkSink(key, s)
	}
}

// checkSink checks that a sink has what its type needs, and nothing that it ignores.
func (c checker) checkSink(key string, s AuditSink) {
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
