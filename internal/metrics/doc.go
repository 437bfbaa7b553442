// Package metrics holds the gateway's Prometheus instruments, as fields and
// methods of one struct given to the rooms that count.
//
// Every label has a closed set of values: those listed in labels.go, and the
// listeners, backends and certificate files of the configuration. A value that is
// not in its set is counted as "other", so nothing a client sends can make a new
// series. Children are resolved when the struct is made; counting allocates
// nothing. The package does not know what the numbers mean to anybody, and
// serves them only as an http.Handler for the admin address.
package metrics
