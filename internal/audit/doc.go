// Package audit writes what an operator must be able to prove later: one line
// of JSON for every login attempt, for every end of a connection, for what
// limits and operators do, and for what becomes of a session that may outlive
// its upstream. docs/AUDIT.md is its schema, and made from schema_test.go.
//
// Each event is a named method that takes typed values; the package alone
// decides the form. Text that came from outside is made harmless first
// (clean.go), so one event is one line whatever a client sends. Callers only
// append to the bounded buffers of outlets (outlet.go); the goroutine of each
// owns its sink: a file (file.go), a syslog server, a Redis stream. When records
// cannot be kept, Ready says so and the front door takes no new logins, unless
// the operator chose to go on without. The package does not know sessions or who
// is allowed in. Of what it counts by the minute (hits.go, probes.go) it writes the ordinary
// log's lines too, so that both say the same.
package audit

//go:generate go test . -run TestSchemaIsDocumented -update
