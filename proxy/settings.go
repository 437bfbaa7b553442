package proxy

import (
	"net/netip"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/relay/mux"
)

// ListenerSettings are the settings of one address that clients connect to.
type ListenerSettings struct {
	Address         string         `yaml:"address" default:"0.0.0.0:993" form:"listen" reload:"restart" doc:"host:port to listen on."`
	Name            string         `yaml:"name" form:"label" reload:"restart" doc:"Its name in logs and metrics. Default: the address."`
	TLS             event.TLSMode  `yaml:"tls" default:"implicit" set:"TLSMode" reload:"restart" doc:"implicit: TLS from the first byte. starttls: LOGINDISABLED until the client has sent STARTTLS. none: passwords travel in the clear; only for a trusted network, behind a proxy that terminates TLS."`
	ProxyProtocol   *ProxyProtocol `yaml:"proxy_protocol" doc:"If present, a PROXY v1 or v2 header is required from trusted peers and refused from all others, which are served as ordinary clients without one. Left out: no header is accepted."`
	TrustedNetworks []netip.Prefix `yaml:"trusted_networks" example:"[10.1.0.0/16]" reload:"new" doc:"Networks of other IMAP proxies in front, whose ID parameters x-originating-ip and related ones are trusted. From all other clients they are ignored. Compared with the TCP peer, or with the address in the PROXY header if there is one."`
}

// ProxyProtocol names the peers whose PROXY header is trusted.
type ProxyProtocol struct {
	Trusted []netip.Prefix `yaml:"trusted" example:"[10.0.0.0/8]" reload:"new" doc:"Networks of the load balancers in front. Required, not empty."`
}

// BackendSettings are how a backend's sessions are relayed.
type BackendSettings struct {
	Mode event.Mode   `yaml:"mode" default:"splice" set:"Mode" later:"park" reload:"new" doc:"How sessions are relayed. splice: byte for byte. reuse: commands are parsed, and after LOGOUT the backend connection is kept for the next login of the same account. The many short sessions of webmail then cost the backend very little. resume: as reuse, and a session survives a restart of its backend; its client sees at most a pause. For this the client's password is kept in memory during the session, unless the backend has login: master. Whatever a mode cannot follow is relayed as with splice."`
	Mux  mux.Settings `yaml:"mux" doc:"For the modes reuse and resume."`
}

// LimitSettings are the timeouts and bounds of clients' connections.
type LimitSettings struct {
	MaxConnections      int           `yaml:"max_connections" default:"0" min:"0" max:"10000000" reload:"live" doc:"Concurrent client connections. 0: as many as the process's descriptor limit allows, at two descriptors each, with 64 in reserve."`
	PreauthTimeout      time.Duration `yaml:"preauth_timeout" default:"60s" min:"1s" max:"10m" reload:"new" doc:"From accept to the last byte of a login, in total. The auth method then has the same time to verify it, and the backend takes at most limits.upstream_login_timeout."`
	TLSHandshakeTimeout time.Duration `yaml:"tls_handshake_timeout" default:"10s" min:"1s" max:"1m" reload:"new" doc:"For the TLS handshake, from accept or from the OK to STARTTLS."`
	TLSHandshakes       int           `yaml:"tls_handshakes" default:"0" min:"0" max:"10000" reload:"live" doc:"TLS handshakes computed at a time; established sessions and logins in progress take precedence. Handshakes that would queue for more than 80 ms (500 ms at the start of a burst) are rejected immediately, so that a flood does not starve the rest. 0: two for each core."`
	IdleTimeout         time.Duration `yaml:"idle_timeout" default:"32m" min:"30m" max:"24h" reload:"new" doc:"A session without traffic in either direction ends after this. RFC 9051 requires at least 30 minutes."`
	WriteTimeout        time.Duration `yaml:"write_timeout" default:"5m" min:"1s" max:"1h" reload:"new" doc:"A session ends if its client or backend accepts no bytes for this long."`
	MaxAuthAttempts     int           `yaml:"max_auth_attempts" was:"auth_attempts" default:"3" min:"1" max:"100" reload:"new" doc:"Failed logins on a connection before it is closed."`
	MaxBadCommands      int           `yaml:"max_bad_commands" was:"bad_commands" default:"3" min:"1" max:"100" reload:"new" doc:"Invalid commands before login, before the connection is closed."`
	MaxLineLength       int           `yaml:"max_line_length" default:"65536" min:"65536" max:"16777216" reload:"new" doc:"Bytes of one line of a client after login, without literals, in the modes reuse and resume; splice has no such limit. Longer lines get BAD. Set it to what the backends accept (Dovecot: imap_max_line_length): webmail sends long lists of UIDs. A client can occupy this much of the gateway's memory while it sends a line."`
	DrainTimeout        time.Duration `yaml:"drain_timeout" was:"drain" default:"30s" min:"0s" max:"24h" reload:"live" doc:"How long sessions may continue after SIGTERM. Idle ones are ended one by one during this time. The service manager must wait longer before it kills the process: see docs/operating/restart-and-upgrade.md."`
}
