package config

import (
	"strings"
	"time"

	"imapgate/proxy/mux"
	"imapgate/proxy/mux/pool"
)

// Mux configures sessions that may outlive their backend connection.
type Mux struct {
	PoolIdleTimeout         time.Duration `yaml:"pool_idle_timeout" was:"logout_reuse_ttl" default:"60s" min:"0s" max:"30m" doc:"After LOGOUT a connection is kept this long for the next login of the same account. 0s: not at all."`
	MaxAge                  time.Duration `yaml:"max_age" default:"1h" min:"1m" max:"24h" doc:"A connection older than this is not reused."`
	CredentialCache         bool          `yaml:"credential_cache" was:"cred_cache" default:"false" doc:"For the auth method passthrough: accept a password, never a token, that the backend has recently accepted, so that a kept connection can be used. Memory holds only a keyed hash of it. Without this each login goes to the backend, on a connection of its own. With it an old password stays valid here until the new one is first used, for up to credential_cache_ttl."`
	CredentialCacheTTL      time.Duration `yaml:"credential_cache_ttl" was:"cred_ttl" default:"300s" min:"1s" max:"1h" doc:"For credential_cache: how long a password is accepted after the backend verified it. Use does not extend it."`
	MaxPerUser              int           `yaml:"max_per_user" default:"64" min:"0" max:"100000" doc:"Connections of one user to this backend. In reuse and resume every client has its own while it is logged in, and a household or an office with one account has many clients. Keep the backend's own bound (Dovecot: mail_max_userip_connections) above it, since all connections come from the gateway's address. One of them is an auxiliary connection of the gateway. A client beyond the bound waits for command_hold_timeout and is then refused. 0: no bound."`
	MaxTotal                int           `yaml:"max_total" default:"0" min:"0" max:"10000000" doc:"Connections of all users to this backend, including idle ones, which are closed first. 0: no bound."`
	CommandHoldTimeout      time.Duration `yaml:"command_hold_timeout" was:"hold_max" default:"10s" min:"100ms" max:"5m" doc:"resume: while the backend is down, a client's command waits this long; then it is refused or the session ends. A connection attempt in progress may take the same time again. The time that the command queues while other sessions are reattached does not count, up to idle_reattach_timeout. Many mail clients give up after 30 to 60 seconds themselves."`
	IdleReattachTimeout     time.Duration `yaml:"idle_reattach_timeout" was:"lost_max" default:"5m" min:"1s" max:"24h" doc:"resume: while the backend is down, a client in IDLE stays connected this long. The time in which other sessions are reattached does not count. Set it above the duration of a restart."`
	SilenceTimeout          time.Duration `yaml:"silence_timeout" was:"silence_max" default:"60s" min:"0s" max:"1h" doc:"resume: if a backend that must answer sends no byte for this long, the gateway opens a second connection for the user and sends a command there. If that is answered, the process of the first connection hangs: the command is sent again on another connection, once. This applies only to commands that change nothing (NOOP, FETCH, SEARCH, LIST, SELECT …) and to the end of IDLE. If the second connection gets no answer either, the backend is slow, and the gateway waits. Set it above the longest time in which a SEARCH of a large mailbox is silent. 0s: never."`
	UIDPrefetch             string        `yaml:"uid_prefetch" was:"learn" default:"auto" oneof:"auto eager lazy" doc:"resume: when the UIDs of a selected mailbox are fetched, without which a session cannot be reattached. eager: soon after SELECT. lazy: only when the connection is released on purpose, so an unexpected loss may end the session. auto: eager for mailboxes of up to uid_prefetch_max_messages messages and for sessions that last."`
	UIDPrefetchMaxMessages  int           `yaml:"uid_prefetch_max_messages" was:"learn_max" default:"100000" min:"1" max:"10000000" doc:"For uid_prefetch: auto, in messages. Fetching 10,000 takes a Dovecot about 3 ms."`
	FlagResyncMaxMessages   int           `yaml:"flag_resync_max_messages" was:"flags_full_max" default:"2000" min:"1" max:"1000000" doc:"resume: if the backend cannot report which flags have changed (no CONDSTORE), the flags of all messages are sent again, in mailboxes of up to this many. Sessions in larger ones end with BYE. The same applies if an auxiliary connection fails, and to messages whose UIDs were not yet fetched."`
	MaxConcurrentReattaches int           `yaml:"max_concurrent_reattaches" was:"max_attaches" default:"50" min:"1" max:"10000" doc:"Sessions reattached at a time, to protect a recovering backend from a thundering herd. Sessions with a waiting command come first; sessions in IDLE use at most half of this."`
	ConsistencyCheck        string        `yaml:"consistency_check" was:"verify_view" default:"off" oneof:"off sample always" doc:"Compare the client's view of its mailbox with the backend's, between commands. sample: once in a thousand pauses. A difference ends the session and is counted in imapgate_mux_consistency_checks_total."`
	ReadAfterWrite          bool          `yaml:"read_after_write" was:"consistent" default:"true" doc:"Two connections of one user see each other's changes at once, as with a single Dovecot or Cyrus. Set it to false for clusters where they may not. The gateway then does not query mailboxes on a second connection, and sends more flags again than have changed."`
	HideCapabilities        []string      `yaml:"hide_capabilities" form:"capability" example:"[X-GM-EXT-1]" doc:"Capabilities that clients are not offered in these modes, in addition to those that never are (such as COMPRESS)."`
}

// Settings returns the settings of package mux.
func (m Mux) Settings() mux.Settings {
	s := mux.Settings{
		Settings:           pool.Settings{PoolIdleTimeout: m.PoolIdleTimeout, MaxAge: m.MaxAge, MaxPerUser: m.MaxPerUser, MaxTotal: m.MaxTotal, CredentialCache: m.CredentialCache, CredentialCacheTTL: m.CredentialCacheTTL},
		CommandHoldTimeout: m.CommandHoldTimeout, IdleReattachTimeout: m.IdleReattachTimeout, SilenceTimeout: m.SilenceTimeout, MaxConcurrentReattaches: m.MaxConcurrentReattaches,
		UIDPrefetch: m.UIDPrefetch, UIDPrefetchMaxMessages: m.UIDPrefetchMaxMessages, FlagResyncMaxMessages: m.FlagResyncMaxMessages, ConsistencyCheck: m.ConsistencyCheck,
		ReadAfterWrite: m.ReadAfterWrite,
	}
	for _, name := range m.HideCapabilities {
		s.HideCapabilities = append(s.HideCapabilities, strings.ToUpper(name))
	}
	return s
}
