// Package testkit has what the tests of all packages share: a wait for a condition, checks
// of errors, a mail server that follows a script, and a search for secrets.
//
// The package is for tests only and imports no other package of the module. A test owns
// the servers it starts; a server owns its listener and its connections.
package testkit

import (
	"runtime"
	"testing"
	"time"
)

const (
	// eventuallyTimeout bounds a wait. It is long because a race build is slow on a busy
	// machine, and only a failing test reaches it.
	eventuallyTimeout = time.Minute
	// minPoll and maxPoll bound the pause between two checks of a condition. It doubles,
	// because some conditions cost more than a comparison.
	minPoll = time.Millisecond
	maxPoll = 16 * time.Millisecond
	// maxStacks bounds the goroutine stacks that a failed wait shows.
	maxStacks = 64 << 10
)

// Eventually polls condition until it returns true, and fails the test after a minute. The
// failure names the condition as what, and shows the results of show and the stacks of
// goroutines. Only the test's own goroutine may call it.
func Eventually(t testing.TB, what string, condition func() bool, show ...func() string) {
	t.Helper()
	pause := minPoll
	for end := time.Now().Add(eventuallyTimeout); !condition(); <-time.After(pause) {
		if time.Now().After(end) {
			for _, text := range show {
				what += "\n" + text()
			}
			stacks := make([]byte, maxStacks)
			t.Fatalf("timed out after %v waiting for: %s\n%s", eventuallyTimeout, what, stacks[:runtime.Stack(stacks, true)])
		}
		pause = min(2*pause, maxPoll)
	}
}

// NoError ends the test if err is not nil.
func NoError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Must returns a function that returns value, or ends the test if err is not nil:
//
//	l := testkit.Must(net.Listen("tcp", address))(t)
func Must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		NoError(t, err)
		return value
	}
}
