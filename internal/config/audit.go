package config

import (
	"slices"
	"strings"
)

// Audit is the audit log.
type Audit struct {
	Path           string      `yaml:"path" default:"-" file:"own" form:"audit" doc:"A file or FIFO; - is standard output; empty keeps no audit log. A file that was renamed is followed by a new one. Short for one entry of sinks, and left out where there are some."`
	OnFailure      string      `yaml:"on_failure" default:"block" oneof:"block drop" doc:"When records cannot be written. block: no new logins, live sessions go on. drop: go on, count what is lost."`
	Commands       string      `yaml:"commands" default:"none" oneof:"none writes all" doc:"Which commands of clients get a record, in the modes that read commands: none, those that may change something, or all. What messages contain is never written. Where a session is spliced there are none."`
	FirstPerMinute int         `yaml:"first_per_minute" default:"10" min:"0" max:"1000000" doc:"How many connections that end without a login, and logins that are refused without a look at the password, have a record of their own: from one address for one reason in a minute. The others are counted in one record at the end of the minute. 0: each has its own."`
	Chain          bool        `yaml:"chain" default:"false" doc:"Number the records of regular files and chain them by hashes, so that imapgate audit verify finds what was changed or removed."`
	Sinks          []AuditSink `yaml:"sinks" doc:"Where records go, when that is more than one place or not a file. Each has a buffer of 10,000 records of its own; one that is slow or away holds up no other."`
}

// AuditSink is one place where records go.
type AuditSink struct {
	Type       string `yaml:"type" form:"required" oneof:"file stdout syslog redis" doc:"What it is."`
	Name       string `yaml:"name" form:"label" doc:"Its name in logs and metrics. Default: the type."`
	Path       string `yaml:"path" file:"own" form:"path" example:"/var/log/imapgate/audit.log" doc:"For type: file. A file or FIFO."`
	Address    string `yaml:"address" form:"syslog" example:"tls://logs.internal:6514" doc:"For type: syslog. unix:///dev/log, tcp://host:port or tls://host:port. See format."`
	Format     string `yaml:"format" oneof:"rfc3164 rfc5424" doc:"For type: syslog. rfc3164: as syslog(3) writes it, on streams a line each. rfc5424: on streams with their length before them. Default: rfc3164 for unix://, as local servers expect it, rfc5424 for tcp:// and tls://."`
	CA         string `yaml:"ca" file:"tls" doc:"For tls://. PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" doc:"For tls://. The name its certificate must have. Default: the host in address."`

	ClientCertificate *Certificate `yaml:"client_certificate" doc:"For tls://. Shown to a server that asks for one."`

	Facility   string   `yaml:"facility" default:"authpriv" oneof:"kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock local0 local1 local2 local3 local4 local5 local6 local7" doc:"For type: syslog."`
	Stream     string   `yaml:"stream" form:"label" doc:"For type: redis. The key of a stream in the Redis of the redis block, whose account must be allowed XADD on it. Default: redis.prefix and audit."`
	MaxRecords int      `yaml:"max_records" default:"100000" min:"100" max:"100000000" doc:"For type: redis. About how many records the stream keeps."`
	Events     []string `yaml:"events" oneof:"started stopped config_reloaded config_rejected operator_action login_accepted login_refused session_ended connection_refused limit_hit ban_added ban_removed spray_suspected routes_emptied routes_restored session_attached upstream_lost session_pinned command records_lost log_opened" example:"[login_refused, ban_added]" doc:"The only events it gets. Left out: all."`
	Results    []string `yaml:"results" oneof:"aborted accepted bad canceled changed delayed gone inconsistent limit lost no ok refused slowed timeout too_large unavailable" example:"[refused, unavailable]" doc:"Of records with a result, the only ones it gets. Left out: all."`
	OnFailure  string   `yaml:"on_failure" oneof:"block drop" doc:"As above, for this sink. Default: audit.on_failure."`
}

// displayName is what the sink is called.
func (s AuditSink) displayName() string {
	if s.Name == "" {
		return s.Type
	}
	return s.Name
}

func (k checker) checkAudit() {
	a := &k.cfg.Audit
	if len(a.Sinks) > 0 && a.Path != "" && a.Path != "-" {
		k.add("audit.path", "is short for one sink: leave it out, and make it one of the sinks")
	}
	names := make(map[string]bool)
	for i, s := range a.Sinks {
		key := ItemKey("audit.sinks", i)
		if names[s.displayName()] {
			k.add(MemberKey(key, "name"), "%s is the name of another sink already", quote(s.displayName()))
		}
		names[s.displayName()] = true
		k.checkSink(key, s)
	}
}

// checkSink checks that a sink has what its type needs, and nothing that it ignores.
func (k checker) checkSink(key string, s AuditSink) {
	switch {
	case s.Type == "":
		k.add(MemberKey(key, "type"), "is required")
	case s.Type == "file" && s.Path == "":
		k.add(MemberKey(key, "path"), "is required with type: file")
	case s.Type == "syslog" && s.Address == "":
		k.add(MemberKey(key, "address"), "is required with type: syslog")
	case s.Type == "redis" && k.cfg.Redis == nil:
		k.add(MemberKey(key, "type"), "is redis, but there is no redis block")
	}
	for _, setting := range []struct{ name, value, kind string }{
		{"path", s.Path, "file"}, {"address", s.Address, "syslog"}, {"format", s.Format, "syslog"}, {"stream", s.Stream, "redis"},
	} {
		if setting.value != "" && s.Type != setting.kind && s.Type != "" {
			k.add(MemberKey(key, setting.name), "is for type: %s", setting.kind)
		}
	}
	if (s.CA != "" || s.ServerName != "" || s.ClientCertificate != nil) && !strings.HasPrefix(s.Address, "tls://") {
		k.add(key, "ca, server_name and client_certificate are used only with tls://")
	}
	k.checkKeyPair(MemberKey(key, "client_certificate"), s.ClientCertificate)
}

// checkSyslogAddress is for addresses of syslog servers.
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
