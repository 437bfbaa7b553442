package mux

import (
	"cmp"
	"time"
)

// When the UIDs of a selected mailbox are learned.
const (
	PrefetchAuto  = "auto"  // eagerly, unless the mailbox is larger than UIDPrefetchMaxMessages
	PrefetchEager = "eager" // so that also a loss nobody foresaw can be healed
	PrefetchLazy  = "lazy"  // when the upstream is given up on purpose
)

// How often the view is compared with what the backend says.
const (
	CheckOff    = "off"
	CheckSample = "sample" // in one gap between commands of a thousand
	CheckAlways = "always"
)

// Settings are what an operator decides about the sessions of one backend.
type Settings struct {
	// The pool. At 0 no connection waits, and limits do not bound.
	PoolIdleTimeout time.Duration // an upstream connection waits this long for its account's next login
	MaxAge          time.Duration // of an upstream connection that is reused
	MaxPerUser      int           // upstream connections of one user
	MaxTotal        int           // upstream connections of all users

	// Passthrough: the passwords that the backend accepted.
	CredentialCache    bool
	CredentialCacheTTL time.Duration // how long one is believed without asking the backend, from when it was asked last

	// Loss.
	CommandHoldTimeout      time.Duration // a command waits this long for a backend that is away
	IdleReattachTimeout     time.Duration // a session in IDLE stays this long without one
	SilenceTimeout          time.Duration // an answer is due this long before a second connection is asked; 0: none is
	MaxConcurrentReattaches int           // under way at a time, so that a backend that comes back is not run over

	// The view.
	UIDPrefetch            string // Auto, Eager or Lazy
	UIDPrefetchMaxMessages int    // messages, for Auto
	FlagResyncMaxMessages  int    // messages whose flags are all told again when the changed ones cannot be known
	ConsistencyCheck       string // Off, Sample or Always
	ReadAfterWrite         bool   // two connections of one user see each other's writes: without it no auxiliary connections

	HideCapabilities []string // capabilities in capitals that are not offered, besides those that never are
	AlwaysDetach     bool     // for tests: gives the upstream up after each command
}

// WithDefaults fills in the settings that mean nothing at 0. Those that mean
// something (PoolIdleTimeout, MaxPerUser, MaxTotal, SilenceTimeout and the switches) stay as they are.
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
