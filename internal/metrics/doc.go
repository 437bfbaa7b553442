// Package metrics holds the gateway's Prometheus instruments, as fields and methods
// of one struct that other packages get.
//
// Every label has a closed set of values: those listed in labels.go, and the
// listeners, backends and certificate files of the configuration. A value outside
// its set is counted as "other", so no client can create a new series. Children are
// resolved when the struct is made; counting does not allocate. The package does not
// interpret the numbers, and serves them only as an http.Handler for the admin
// address.
package metrics
