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
	back    atomic.Bool
	once    sync.Once
	probed  chan struct{}
	answers chan struct{}
}

// NewOutage makes an Outage that has begun.
func NewOutage() *Outage {
	return &Outage{probed: make(chan struct{}), answers: make(chan struct{})}
}

// Handler is the server: it answers with answer.
func (o *Outage) Handler(isProbe func(*http.Request) bool, answer http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !o.back.Load() {
			panic(http.ErrAbortHandler)
		}
		if isProbe(r) {
			o.once.Do(func() { close(o.probed) })
			<-o.answers
		}
		answer(w, r)
	})
}

// Play asks until the server counts as down, which takes that many failures with the
// error away. Then the server is back, and is probed; of those who ask beside the probe,
// none may be refused.
func (o *Outage) Play(t *testing.T, failures int, away error, ask func() error) {
	t.Helper()
	for range failures {
		if err := ask(); !errors.Is(err, away) {
			t.Fatal(err)
		}
	}
	o.back.Store(true)
	var logins sync.WaitGroup
	logins.Go(func() {
		for ask() != nil && t.Context().Err() == nil {
		}
	})
	<-o.probed
	begun := make(chan struct{})
	for range 20 {
		logins.Go(func() {
			begun <- struct{}{}
			if err := ask(); err != nil {
				t.Error(err)
			}
		})
	}
	for range 20 {
		<-begun
	}
	close(o.answers)
	logins.Wait()
}
