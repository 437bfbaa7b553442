// Package audit writes what an operator must be able to prove later: one line
// of JSON for every login attempt, for every end of a connection, and for what
// becomes of a session that may outlive its upstream (mux.go).
//
// Each event is a named method that takes typed values; the package alone
// decides the form. Text that came from outside is made harmless first
// (clean.go), so one event is one line whatever a client sends. Callers only
// append to a bounded buffer; one goroutine owns the file. When records cannot
// be kept, Ready says so and the front door takes no new logins, unless the
// operator chose to go on without. The package does not know sessions, who is
// allowed in, or the ordinary log's lines.
package audit
