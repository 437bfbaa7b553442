package mux

import (
	"cmp"
	"time"
)

// When the UIDs of a selected mailbox are learned.
const (
	Auto  = "auto"  // eagerly, unless the mailbox is larger than LearnMax
	Eager = "eager" // so that also a loss nobody foresaw can be healed
	Lazy  = "lazy"  // when the upstream is given up on purpose
)

// How often the view is compared with what the backend says.
const (
	Off    = "off"
	Sample = "sample" // in one gap between commands of a thousand
	Always = "always"
)

// Settings are what an operator decides about the sessions of one backend.
type Settings struct {
	// The pool. At 0 no connection waits, and limits do not bound.
	ReuseTTL   time.Duration // an upstream connection waits this long for its account's next login
	MaxAge     time.Duration // of an upstream connection that is reused
	MaxPerUser int           // upstream connections of one user
	MaxTotal   int           // upstream connections of all users

	// Passthrough: the passwords that the backend accepted.
	CredCache bool
	CredTTL   time.Duration // how long one is believed without asking the backend, from when it was asked last

	// Loss.
	HoldMax     time.Duration // a command waits this long for a backend that is away
	LostMax     time.Duration // a session in IDLE stays this long without one
	SilenceMax  time.Duration // an answer is due this long before a second connection is asked; 0: none is
	MaxAttaches int           // under way at a time, so that a backend that comes back is not run over

	// The view.
	Learn        string // Auto, Eager or Lazy
	LearnMax     int    // messages, for Auto
	FlagsFullMax int    // messages whose flags are all told again when the changed ones cannot be known
	VerifyView   string // Off, Sample or Always
	Consistent   bool   // two connections of one user see each other's writes: without it no auxiliary connections

	Hide         []string // capabilities in capitals that are not offered, besides those that never are
	AlwaysDetach bool     // for tests: gives the upstream up after each command
}

// WithDefaults fills in the settings that mean nothing at 0. Those that mean
// something (ReuseTTL, MaxPerUser, MaxTotal, SilenceMax and the switches) stay as they are.
func (s Settings) WithDefaults() Settings {
	s.MaxAge = cmp.Or(s.MaxAge, time.Hour)
	s.CredTTL = cmp.Or(s.CredTTL, 5*time.Minute)
	s.HoldMax = cmp.Or(s.HoldMax, 10*time.Second)
	s.LostMax = cmp.Or(s.LostMax, 5*time.Minute)
	s.MaxAttaches = cmp.Or(s.MaxAttaches, 50)
	s.Learn = cmp.Or(s.Learn, Auto)
	s.LearnMax = cmp.Or(s.LearnMax, 100_000)
	s.FlagsFullMax = cmp.Or(s.FlagsFullMax, 2_000)
	s.VerifyView = cmp.Or(s.VerifyView, Off)
	return s
}
