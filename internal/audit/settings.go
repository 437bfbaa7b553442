package audit

import (
	"crypto/tls"

	"imapgate/tlsconf"
)

// Settings are the settings of the audit log. Path is used without Sinks.
type Settings struct {
	Path           string         `yaml:"path" default:"-" file:"own" form:"audit" reload:"restart" doc:"A file or FIFO; - is standard output; empty keeps no audit log. If the file is renamed, a new one is created. Short for one entry of sinks; leave it out if there are sinks."`
	OnFailure      string         `yaml:"on_failure" default:"block" oneof:"block drop" reload:"live" doc:"When records cannot be written. block: refuse new logins, live sessions continue. drop: continue, and count the lost records."`
	Commands       CommandFilter  `yaml:"commands" default:"none" oneof:"none writes all" reload:"new" doc:"Which commands of clients are recorded, in the modes that parse commands: none, those that may change something, or all. The content of messages is never recorded. A session that is spliced has no command records."`
	FirstPerMinute int            `yaml:"first_per_minute" default:"10" min:"0" max:"1000000" reload:"live" doc:"For connections that end without a login, and for logins refused before their password is checked: how many per address, reason and minute have a record of their own. The others are counted in one record at the end of the minute. 0: each has its own."`
	Chain          bool           `yaml:"chain" default:"false" reload:"restart" doc:"Number the records of regular files and chain them by hashes, so that imapgate audit verify finds changed and removed records."`
	Sinks          []SinkSettings `yaml:"sinks" doc:"The destinations of records, if there are several or if it is not a file. Each has its own buffer of 10,000 records; one that is slow or down does not delay the others."`
}

// SinkSettings are the settings of one destination of records.
type SinkSettings struct {
	Type       string `yaml:"type" form:"required" oneof:"file stdout syslog redis" reload:"restart" doc:"The type of the sink."`
	Name       string `yaml:"name" form:"label" reload:"restart" doc:"Its name in logs and metrics. Default: the type."`
	Path       string `yaml:"path" file:"own" form:"path" example:"/var/log/imapgate/audit.log" reload:"restart" doc:"For type: file. A file or FIFO."`
	Address    string `yaml:"address" form:"syslog" example:"tls://logs.internal:6514" reload:"restart" doc:"For type: syslog. unix:///dev/log, tcp://host:port or tls://host:port. See format."`
	Format     string `yaml:"format" oneof:"rfc3164 rfc5424" reload:"restart" doc:"For type: syslog. rfc3164: as syslog(3) writes it; on TCP and TLS, one line for each record. rfc5424: on TCP and TLS, with the length before each record. Default: rfc3164 for unix://, which local servers expect; rfc5424 for tcp:// and tls://."`
	CA         string `yaml:"ca" file:"tls" reload:"restart" doc:"For tls://. PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" reload:"restart" doc:"For tls://. The name its certificate must have. Default: the host in address."`

	ClientCertificate *tlsconf.CertFiles `yaml:"client_certificate" doc:"For tls://. Presented to a server that requests one."`

	Facility   string   `yaml:"facility" default:"authpriv" oneof:"kern user mail daemon auth syslog lpr news uucp cron authpriv ftp ntp audit alert clock local0 local1 local2 local3 local4 local5 local6 local7" reload:"restart" doc:"For type: syslog."`
	Stream     string   `yaml:"stream" form:"label" reload:"restart" doc:"For type: redis. The key of a stream in the Redis of the redis block, whose account must be allowed XADD on it. Default: redis.prefix followed by audit."`
	MaxRecords int      `yaml:"max_records" default:"100000" min:"100" max:"100000000" reload:"restart" doc:"For type: redis. The approximate number of records that the stream keeps."`
	Events     []string `yaml:"events" set:"Event" example:"[login_refused, ban_added]" reload:"restart" doc:"The only events that this sink gets. Left out: all."`
	Results    []string `yaml:"results" set:"Result record" example:"[refused, unavailable]" reload:"restart" doc:"The only results that this sink gets; records without a result are not filtered. Left out: all."`
	OnFailure  string   `yaml:"on_failure" oneof:"block drop" reload:"restart" doc:"As above, for this sink. Default: audit.on_failure."`

	TLS func() *tls.Config `yaml:"-"` // for new tls:// connections
}
