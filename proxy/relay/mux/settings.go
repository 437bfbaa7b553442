package mux

import (
	"time"

	"imapgate/proxy/relay/mux/pool"
)

// The values of Settings.UIDPrefetch: when to fetch the UIDs of a selected mailbox.
const (
	PrefetchAuto  = "auto"  // eagerly, unless the mailbox is larger than UIDPrefetchMaxMessages
	PrefetchEager = "eager" // at once, so that an unexpected loss can be recovered, too
	PrefetchLazy  = "lazy"  // when the gateway releases the upstream
)

// The values of Settings.ConsistencyCheck: how often to compare the view with the
// backend.
const (
	CheckOff    = "off"
	CheckSample = "sample" // once in a thousand times
	CheckAlways = "always"
)

// Settings are the settings of the sessions of one backend.
type Settings struct {
	pool.Settings
	CommandHoldTimeout      time.Duration `yaml:"command_hold_timeout" was:"hold_max" default:"10s" min:"100ms" max:"5m" reload:"new" doc:"resume: while the backend is down, a client's command waits this long; then it is refused or the session ends. A connection attempt in progress may take the same time again. The time that the command queues while other sessions are reattached does not count, up to idle_reattach_timeout. Many mail clients give up after 30 to 60 seconds themselves."`
	IdleReattachTimeout     time.Duration `yaml:"idle_reattach_timeout" was:"lost_max" default:"5m" min:"1s" max:"24h" reload:"new" doc:"resume: while the backend is down, a client in IDLE stays connected this long. The time in which other sessions are reattached does not count. Set it above the duration of a restart."`
	SilenceTimeout          time.Duration `yaml:"silence_timeout" was:"silence_max" default:"60s" min:"0s" max:"1h" reload:"new" doc:"resume: if a backend that must answer sends no byte for this long, the gateway opens a second connection for the user and sends a command there. If that is answered, the process of the first connection hangs: the command is sent again on another connection, once. This applies only to commands that change nothing (NOOP, FETCH, SEARCH, LIST, SELECT …) and to the end of IDLE. If the second connection gets no answer either, the backend is slow, and the gateway waits. Set it above the longest time in which a SEARCH of a large mailbox is silent. 0s: never."`
	UIDPrefetch             string        `yaml:"uid_prefetch" was:"learn" default:"auto" oneof:"auto eager lazy" reload:"new" doc:"resume: when the UIDs of a selected mailbox are fetched, without which a session cannot be reattached. eager: soon after SELECT. lazy: only when the connection is released on purpose, so an unexpected loss may end the session. auto: eager for mailboxes of up to uid_prefetch_max_messages messages and for sessions that last."`
	UIDPrefetchMaxMessages  int           `yaml:"uid_prefetch_max_messages" was:"learn_max" default:"100000" min:"1" max:"10000000" reload:"new" doc:"For uid_prefetch: auto, in messages. Fetching 10,000 takes a Dovecot about 3 ms."`
	FlagResyncMaxMessages   int           `yaml:"flag_resync_max_messages" was:"flags_full_max" default:"2000" min:"1" max:"1000000" reload:"new" doc:"resume: if the backend cannot report which flags have changed (no CONDSTORE), the flags of all messages are sent again, in mailboxes of up to this many. Sessions in larger ones end with BYE. The same applies if an auxiliary connection fails, and to messages whose UIDs were not yet fetched."`
	MaxConcurrentReattaches int           `yaml:"max_concurrent_reattaches" was:"max_attaches" default:"50" min:"1" max:"10000" reload:"new" doc:"Sessions reattached at a time, to protect a recovering backend from a thundering herd. Sessions with a waiting command come first; sessions in IDLE use at most half of this."`
	ConsistencyCheck        string        `yaml:"consistency_check" was:"verify_view" default:"off" oneof:"off sample always" reload:"new" doc:"Compare the client's view of its mailbox with the backend's, between commands. sample: once in a thousand pauses. A difference ends the session and is counted in imapgate_mux_consistency_checks_total."`
	ReadAfterWrite          bool          `yaml:"read_after_write" was:"consistent" default:"true" reload:"new" doc:"Two connections of one user see each other's changes at once, as with a single Dovecot or Cyrus. Set it to false for clusters where they may not. The gateway then does not query mailboxes on a second connection, and sends more flags again than have changed."`
	HideCapabilities        []string      `yaml:"hide_capabilities" form:"capability" example:"[X-GM-EXT-1]" reload:"new" doc:"Capabilities that clients are not offered in these modes, in addition to those that never are (such as COMPRESS)."`

	AlwaysDetach bool `yaml:"-"` // for tests: release the upstream after each command
}
