package mux

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/pool"
)

// answeringBackend answers every command, and counts those of clients.
type answeringBackend struct{ clientCommands atomic.Int64 }

// serve ends when the connection does.
func (b *answeringBackend) serve(p *scriptedConn) {
	defer p.close()
	for {
		line, err := p.readLine()
		if err != nil {
			return
		}
		tag, command, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), " ")
		if strings.HasPrefix(tag, "c-") {
			b.clientCommands.Add(1)
		}
		switch {
		case strings.HasPrefix(command, "SELECT"):
			p.send(strings.Join(selectLines("0", "1", "7"), "\r\n") + "\r\n")
		case command == "IDLE":
			p.send("+ idling\r\n")
			if _, err := p.readLine(); err != nil {
				return
			}
		}
		p.send(tag + " OK done\r\n")
	}
}

// useSession sends rounds of commands, each of which must be answered OK.
func useSession(c *testClient, rng *rand.Rand, rounds int) error {
	for i := range rounds {
		switch rng.IntN(3) {
		case 0:
			c.send(fmt.Sprintf("c-%d IDLE\r\n", i))
			if err := c.expect("+ idling\r\n"); err != nil {
				return err
			}
			<-time.After(time.Duration(rng.IntN(4)) * time.Millisecond)
			c.send("DONE\r\n")
			if err := c.expect(fmt.Sprintf("c-%d OK Idle completed.\r\n", i)); err != nil {
				return err
			}
		case 1:
			c.send(fmt.Sprintf("c-%dx NOOP\r\nc-%d NOOP\r\n", i, i))
			if err := c.expect(fmt.Sprintf("c-%dx OK done\r\nc-%d OK done\r\n", i, i)); err != nil {
				return err
			}
		default:
			c.send(fmt.Sprintf("c-%d NOOP\r\n", i))
			if err := c.expect(fmt.Sprintf("c-%d OK done\r\n", i)); err != nil {
				return err
			}
			<-time.After(time.Duration(rng.IntN(3)) * time.Millisecond)
		}
	}
	return nil
}

// TestPausesRaceWithCommands moves three sessions of a user between two backends while
// their clients send commands. When all have left, no backend receives a command until they
// resume.
func TestPausesRaceWithCommands(t *testing.T) {
	checkGoroutineLeaks(t)
	h := newHarness(t, setup{settings: Settings{CommandHoldTimeout: time.Minute, Settings: pool.Settings{PoolIdleTimeout: time.Minute}}}, nil)
	b := &answeringBackend{}
	run := &fuzzRun{harness: h, serve: b.serve, stop: make(chan struct{})}
	run.serving.Add(1)
	go run.serveAll()
	var clients []*testClient
	var active sync.WaitGroup
	done := make(chan struct{})
	for seed := range uint64(3) {
		c := h.logIn()
		clients = append(clients, c)
		c.send("s SELECT INBOX\r\n")
		testkit.NoError(t, c.expect(strings.Join(selectLines("0", "1", "7"), "\r\n")+"\r\ns OK done\r\n"))
		active.Go(func() {
			if err := useSession(c, rand.New(rand.NewPCG(seed, 0)), 200); err != nil {
				rest, _ := c.readLine()
				t.Errorf("client %d: %v, then %q", seed, err, rest)
			}
		})
	}
	go func() { active.Wait(); close(done) }()
	pauses := 0
	for isDone := false; !isDone; pauses++ {
		pauseAll(t, clients, b, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.location.Backend = []string{"stub", "west"}[pauses%2]
		})
		select {
		case <-done:
			isDone = true
		case <-time.After(time.Duration(pauses%4*10) * time.Millisecond):
		}
	}
	t.Logf("%d pauses, %d commands at the backends", pauses, b.clientCommands.Load())
	h.deps.Sessions.AbortAll(event.Drained)
	for _, c := range clients {
		h.awaitEnd(c)
	}
	h.close(clients...)
	close(run.stop)
	run.serving.Wait() // all connections have been closed
	h.stub.closeListener()
}

// pauseAll pauses the sessions, calls whilePaused once all have left, and resumes them.
// Every third time it does not wait.
func pauseAll(t *testing.T, clients []*testClient, b *answeringBackend, whilePaused func()) {
	t.Helper()
	waits := b.clientCommands.Load()%3 > 0
	for _, c := range clients {
		if !c.session.live.Pause() {
			t.Error("a session cannot pause")
		}
	}
	if waits {
		for _, c := range clients {
			testkit.Eventually(t, "a session to leave", func() bool { return !c.session.live.IsLeaving() })
		}
		before := b.clientCommands.Load()
		whilePaused()
		<-time.After(200 * time.Microsecond)
		if n := b.clientCommands.Load() - before; n > 0 {
			t.Errorf("%d commands reached a backend during a pause", n)
		}
	}
	for _, c := range clients {
		c.session.live.Resume()
	}
}
