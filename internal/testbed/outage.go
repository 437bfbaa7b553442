package testbed

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// Outage simulates an outage of an HTTP server. The server aborts every request until
// Run ends the outage. Then it answers, but holds the first probes until Run has started
// other requests beside them.
type Outage struct {
	up           atomic.Bool
	probeOnce    sync.Once
	probeArrived chan struct{}
	releaseProbe chan struct{}
}

// NewOutage returns an Outage that has begun.
func NewOutage() *Outage {
	return &Outage{probeArrived: make(chan struct{}), releaseProbe: make(chan struct{})}
}

// Handler returns the server's handler, which calls answer while the server is up.
func (o *Outage) Handler(isProbe func(*http.Request) bool, answer http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.up.Load() {
			panic(http.ErrAbortHandler)
		}
		if isProbe(r) {
			o.probeOnce.Do(func() { close(o.probeArrived) })
			<-o.releaseProbe
		}
		answer(w, r)
	})
}

// Run sends requests until the server counts as down: that many fail with errDown. Then
// it ends the outage and lets one request probe the server. Requests that are made during
// the probe must succeed.
func (o *Outage) Run(t *testing.T, failures int, errDown error, request func() error) {
	t.Helper()
	for range failures {
		if err := request(); !errors.Is(err, errDown) {
			t.Fatal(err)
		}
	}
	o.up.Store(true)
	var logins sync.WaitGroup
	logins.Go(func() {
		for request() != nil && t.Context().Err() == nil {
		}
	})
	<-o.probeArrived
	started := make(chan struct{})
	for range 20 {
		logins.Go(func() {
			started <- struct{}{}
			if err := request(); err != nil {
				t.Error(err)
			}
		})
	}
	for range 20 {
		<-started
	}
	close(o.releaseProbe)
	logins.Wait()
}
