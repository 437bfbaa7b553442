package testbed

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// Outage is that of an HTTP server, which breaks off every request until Play ends it.
// Then it answers, but a probe only when others have asked beside it.
type Outage struct {
	up           atomic.Bool
	probeOnce    sync.Once
	probeArrived chan struct{}
	releaseProbe chan struct{}
}

// NewOutage makes an Outage that has begun.
func NewOutage() *Outage {
	return &Outage{probeArrived: make(chan struct{}), releaseProbe: make(chan struct{})}
}

// Handler is the server: it answers with answer.
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

// Run asks until the server counts as down, which takes that many failures with the
// error away. Then the server is back, and is probed; of those who ask beside the probe,
// none may be refused.
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
