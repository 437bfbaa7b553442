package config

import (
	"strings"
	"time"

	"imapgate/proxy/mux"
)

// Mux is the settings of sessions that may outlive their backend connection.
type Mux struct {
	PoolIdleTimeout         time.Duration `yaml:"pool_idle_timeout" was:"logout_reuse_ttl" default:"60s" min:"0s" max:"30m" doc:"After LOGOUT a connection waits this long for the same account's next login. 0s: none waits."`
	MaxAge                  time.Duration `yaml:"max_age" default:"1h" min:"1m" max:"24h" doc:"A connection older than this is not used again."`
	CredentialCache         bool          `yaml:"credential_cache" was:"cred_cache" default:"false" doc:"For the auth method passthrough: believe a password, never a token, that the backend has just accepted (a keyed hash of it is kept in memory), so that a waiting connection can be used. Without it each login asks the backend, on a connection of its own. With it a changed password stays good here until the new one is first used, for up to credential_cache_ttl."`
	CredentialCacheTTL      time.Duration `yaml:"credential_cache_ttl" was:"cred_ttl" default:"300s" min:"1s" max:"1h" doc:"For credential_cache: how long a password is believed after the backend was asked; being used does not prolong it."`
	MaxPerUser              int           `yaml:"max_per_user" default:"64" min:"0" max:"100000" doc:"Connections of one user to this backend. In reuse and resume every client has one of its own while it is logged in, and a household or an office with one account has many clients. Keep the backend's own bound (Dovecot: mail_max_userip_connections) above it, since all connections come from the gateway's address. One of them is the gateway's own, for questions. A client beyond the bound waits for command_hold_timeout and is then refused. 0: no bound."`
	MaxTotal                int           `yaml:"max_total" default:"0" min:"0" max:"10000000" doc:"Connections of all users to this backend, waiting ones included; those give way first. 0: no bound."`
	CommandHoldTimeout      time.Duration `yaml:"command_hold_timeout" was:"hold_max" default:"10s" min:"100ms" max:"5m" doc:"resume: while the backend is away, a client's command waits this long, then it is refused or the session ends; an attempt to connect that has begun may take as long again. Time in which the command waits its turn while other sessions are connected again does not count, up to idle_reattach_timeout. Many mail programs give up after 30 to 60 seconds themselves."`
	IdleReattachTimeout     time.Duration `yaml:"idle_reattach_timeout" was:"lost_max" default:"5m" min:"1s" max:"24h" doc:"resume: while the backend is away, a client in IDLE stays connected this long. Time in which others are connected again does not count. Set it above the time a restart takes."`
	SilenceTimeout          time.Duration `yaml:"silence_timeout" was:"silence_max" default:"60s" min:"0s" max:"1h" doc:"resume: when the backend owes an answer and has not sent an octet for so long, a second connection is made for the user and asked. If it is answered, the process behind the first one hangs: the command is sent again on another connection, once. That is done only for commands that change nothing (NOOP, FETCH, SEARCH, LIST, SELECT …) and at the end of IDLE. If the second is not answered either, the backend is slow, and is waited for. Set it above the longest time in which a SEARCH of a large mailbox is silent. 0s: never."`
	UIDPrefetch             string        `yaml:"uid_prefetch" was:"learn" default:"auto" oneof:"auto eager lazy" doc:"resume: when the messages of a selected mailbox are learned, without which a session does not survive. eager: soon after SELECT. lazy: only when the connection is given up on purpose, so an unforeseen loss may end the session. auto: eager for mailboxes of up to uid_prefetch_max_messages messages and sessions that last."`
	UIDPrefetchMaxMessages  int           `yaml:"uid_prefetch_max_messages" was:"learn_max" default:"100000" min:"1" max:"10000000" doc:"For uid_prefetch: auto, in messages. Learning 10,000 takes a Dovecot about 3 ms."`
	FlagResyncMaxMessages   int           `yaml:"flag_resync_max_messages" was:"flags_full_max" default:"2000" min:"1" max:"1000000" doc:"resume: where the backend cannot tell which flags have changed (no CONDSTORE), the flags of all messages are told again, in mailboxes of up to so many; sessions in larger ones end with BYE. The same where an auxiliary connection fails, and for messages whose UIDs were not yet learned."`
	MaxConcurrentReattaches int           `yaml:"max_concurrent_reattaches" was:"max_attaches" default:"50" min:"1" max:"10000" doc:"Sessions given a new connection at a time, so that a backend that comes back is not run over by all of them. Those with a command in hand come first; sessions in IDLE have half of this at most."`
	ConsistencyCheck        string        `yaml:"consistency_check" was:"verify_view" default:"off" oneof:"off sample always" doc:"Compare what a client was told of its mailbox with what the backend says, between commands. sample: once in a thousand gaps. A difference ends the session and is counted in imapgate_mux_consistency_checks_total."`
	ReadAfterWrite          bool          `yaml:"read_after_write" was:"consistent" default:"true" doc:"Two connections of one user see each other's changes at once, as with a single Dovecot or Cyrus. Set it to false for clusters where they may not; the gateway then asks for nothing about mailboxes on a second connection, and tells more flags again than have changed."`
	HideCapabilities        []string      `yaml:"hide_capabilities" form:"capability" example:"[X-GM-EXT-1]" doc:"Capabilities that clients are not offered in these modes, besides those that never are (such as COMPRESS)."`
}

// Settings is the part that the relay takes.
func (m Mux) Settings() mux.Settings {
	s := mux.Settings{
		PoolIdleTimeout: m.PoolIdleTimeout, MaxAge: m.MaxAge, MaxPerUser: m.MaxPerUser, MaxTotal: m.MaxTotal,
		CredentialCache: m.CredentialCache, CredentialCacheTTL: m.CredentialCacheTTL,
		CommandHoldTimeout: m.CommandHoldTimeout, IdleReattachTimeout: m.IdleReattachTimeout, SilenceTimeout: m.SilenceTimeout, MaxConcurrentReattaches: m.MaxConcurrentReattaches,
		UIDPrefetch: m.UIDPrefetch, UIDPrefetchMaxMessages: m.UIDPrefetchMaxMessages, FlagResyncMaxMessages: m.FlagResyncMaxMessages, ConsistencyCheck: m.ConsistencyCheck,
		ReadAfterWrite: m.ReadAfterWrite,
	}
	for _, name := range m.HideCapabilities {
		s.HideCapabilities = append(s.HideCapabilities, strings.ToUpper(name))
	}
	return s
}
