package mux

import (
	"cmp"
	"time"
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

// Settings are the operator's settings for the sessions of one backend.
type Settings struct {
	// The pool. 0 in PoolIdleTimeout disables it; 0 in the limits means unlimited.
	PoolIdleTimeout time.Duration // how long an upstream connection waits for the account's next login
	MaxAge          time.Duration // of a reused upstream connection
	MaxPerUser      int           // upstream connections of one user
	MaxTotal        int           // upstream connections of all users

	// Passthrough: passwords accepted by the backend.
	CredentialCache    bool
	CredentialCacheTTL time.Duration // how long a password is accepted after the backend verified it

	// Loss.
	CommandHoldTimeout      time.Duration // how long a command waits for a backend that is down
	IdleReattachTimeout     time.Duration // how long a session in IDLE waits for it
	SilenceTimeout          time.Duration // silence after which a second connection is queried; 0: never
	MaxConcurrentReattaches int           // bound that protects a recovering backend

	// The view.
	UIDPrefetch            string // PrefetchAuto, PrefetchEager or PrefetchLazy
	UIDPrefetchMaxMessages int    // bound for PrefetchAuto
	FlagResyncMaxMessages  int    // bound for resending all flags if the changed ones are unknown
	ConsistencyCheck       string // CheckOff, CheckSample or CheckAlways
	ReadAfterWrite         bool   // connections of one user see each other's writes; required for auxiliary connections

	HideCapabilities []string // additional capabilities to hide, in upper case
	AlwaysDetach     bool     // for tests: release the upstream after each command
}

// WithDefaults replaces zero values by defaults. PoolIdleTimeout, MaxPerUser, MaxTotal,
// SilenceTimeout and the switches stay as they are, because zero has a meaning there.
func (s Settings) WithDefaults() Settings {
	s.MaxAge = cmp.Or(s.MaxAge, time.Hour)
	s.CredentialCacheTTL = cmp.Or(s.CredentialCacheTTL, 5*time.Minute)
	s.CommandHoldTimeout = cmp.Or(s.CommandHoldTimeout, 10*time.Second)
	s.IdleReattachTimeout = cmp.Or(s.IdleReattachTimeout, 5*time.Minute)
	s.MaxConcurrentReattaches = cmp.Or(s.MaxConcurrentReattaches, 50)
	s.UIDPrefetch = cmp.Or(s.UIDPrefetch, PrefetchAuto)
	s.UIDPrefetchMaxMessages = cmp.Or(s.UIDPrefetchMaxMessages, 100_000)
	s.FlagResyncMaxMessages = cmp.Or(s.FlagResyncMaxMessages, 2_000)
	s.ConsistencyCheck = cmp.Or(s.ConsistencyCheck, CheckOff)
	return s
}
