// Package mutant names the safety checks that a build for tests can switch off,
// to prove that the tests notice. In every other build Is is false, and the
// compiler drops it.
package mutant

// Mutant is a check that is left out.
type Mutant string

// The mutants there are.
const (
	BufferCheck         Mutant = "buffer_check"    // a pooled connection may hold unread bytes
	DeferredEnable      Mutant = "deferred_enable" // a connection may have more enabled than its session
	PendingExpungeHold  Mutant = "ghosts_hold"     // commands with message numbers pass while expunges are pending
	ReattachFlags       Mutant = "attach_flags"    // no flag changes are told on attach
	TranslateAfterFlush Mutant = "map_then_flush"  // numbers are mapped to UIDs behind the flush
	ModseqFromAux       Mutant = "m_from_aux"      // the mod-sequence is the auxiliary connection's, not the lease's
)
