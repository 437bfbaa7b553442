package tests

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// liveSessionCount is the number of sessions that stay active during the overload.
const liveSessionCount = 200

// The offered load is three times the logins that the gateway can serve. It serves nearly as
// many as before, refuses the others at once, and existing sessions are not affected.
//
// TLS costs the load generator nearly as much as the gateway. So the gateway gets a part of
// a core, and the load generator and the stub use the rest.
func TestThreeTimesTheLoginsDisturbNoSession(t *testing.T) {
	if os.Getenv(soakEnv) != "1" {
		t.Skip("a measurement, for a quiet machine: make overload")
	}
	ca := testbed.NewCA(t)
	t.Setenv("GOMAXPROCS", "1") // of the gateway and the load generators
	b := startProcess(t, ca, fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", startStub(t, nil).Addr()),
		"routing: {source: static, static: {default: east}}")
	t.Logf("the gateway has %s", limitCPU(t, b.process.PID()))
	clients := b.openClients(t, liveSessionCount)
	spec := loadSpec{Address: b.addresses["implicit"], CA: ca.File, Workers: 16, Duration: 10 * time.Second}
	runLoad(t, spec) // fills caches
	peak := b.measureCapacity(t, spec)
	sessions := startLiveSessions(t.Context(), clients)
	overload := spec
	overload.Rate, overload.Duration = 3*peak, time.Minute
	result := runLoad(t, overload)
	sessions.stop()
	peak = max(peak, b.measureCapacity(t, spec)) // the machine's other load varies

	share := float64(result.Served) / overload.Duration.Seconds() / peak
	refused := b.refusalTimes(t)
	t.Logf("%.0f logins/s offered, %.0f %% of the peak done: %v", overload.Rate, 100*share, result)
	t.Logf("refused, from accept to the end: %s", formatLatencies(refused))
	t.Logf("live sessions: %d of %d lost; NOOP, %s; %s", sessions.lost, liveSessionCount, formatLatencies(sessions.latencies), b.formatUsage(t))
	if sessions.lost > 0 {
		t.Errorf("%d live sessions were lost: %v", sessions.lost, sessions.lastErr)
	}
	if share < 0.8 {
		t.Errorf("%.0f %% of the peak was done", 100*share)
	}
	if slices.Sort(refused); len(refused) == 0 || refused[len(refused)*99/100] > 100*time.Millisecond {
		t.Error("no client was refused, or not within 100 ms")
	}
}

// openClients opens n sessions, one after the other.
func (b *gatewayProcess) openClients(t *testing.T, n int) []*lightClient {
	t.Helper()
	clients := make([]*lightClient, n)
	for i := range clients {
		p, err := dialLight(b.endpoint("implicit"), fmt.Sprintf("127.8.0.%d", 1+i%250))
		if err == nil {
			t.Cleanup(func() { _ = p.conn.Close() })
			err = p.exec(fmt.Sprintf("LOGIN liver%d %s", i, password))
		}
		if err != nil {
			t.Fatalf("log in: %v", err)
		}
		clients[i] = p
	}
	return clients
}

// measureCapacity returns the logins per second of workers that wait for each login.
func (b *gatewayProcess) measureCapacity(t *testing.T, o loadSpec) float64 {
	t.Helper()
	result := runLoad(t, o)
	rate := float64(result.Served) / o.Duration.Seconds()
	t.Logf("%d at a time: %.0f logins/s; %v", o.Workers, rate, result)
	return rate
}

// refusalTimes returns the durations of connections that the gateway refused because it was
// busy.
func (b *gatewayProcess) refusalTimes(t *testing.T) (durations []time.Duration) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.dir, "audit"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var record struct {
			Reason string
			Took   float64 `json:"duration_ms"`
		}
		if json.Unmarshal([]byte(line), &record) == nil && record.Reason == "overload" {
			durations = append(durations, time.Duration(record.Took*float64(time.Millisecond)))
		}
	}
	return durations
}

// limitCPU gives a process exactly 40 % of a core by a control group, if possible. It
// returns a description of the result.
func limitCPU(t *testing.T, pid int) string {
	t.Helper()
	name := fmt.Sprintf("imapgate-%d", pid)
	for dir, files := range map[string][][2]string{
		"/sys/fs/cgroup/cpu/" + name: {{"cpu.cfs_period_us", "10000"}, {"cpu.cfs_quota_us", "4000"}, {"cpu.shares", "10240"}},
		"/sys/fs/cgroup/" + name:     {{"cpu.max", "4000 10000"}, {"cpu.weight", "1000"}},
	} {
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil { // not a control group
			_ = os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o644) // fails if the process has exited
			testkit.Eventually(t, "a control group to be removed", func() bool { return os.Remove(dir) == nil })
		})
		var err error
		for _, f := range append(files, [2]string{"cgroup.procs", fmt.Sprint(pid)}) {
			err = errors.Join(err, os.WriteFile(filepath.Join(dir, f[0]), []byte(f[1]), 0o644))
		}
		if err == nil {
			return "0.4 of a core"
		}
	}
	return "one core at most, and shares it"
}

// liveSessions are sessions that send NOOP every second.
type liveSessions struct {
	// Set once.
	cancel  context.CancelFunc
	workers errgroup.Group

	mu sync.Mutex
	// Guarded by mu.
	latencies []time.Duration
	lost      int
	lastErr   error
}

// startLiveSessions starts a goroutine for each client; stop waits for them.
func startLiveSessions(ctx context.Context, clients []*lightClient) *liveSessions {
	l := &liveSessions{}
	ctx, l.cancel = context.WithCancel(ctx)
	for _, p := range clients {
		l.workers.Go(func() error { return l.poll(ctx, p) })
	}
	return l
}

// poll sends NOOP every second until the session ends or ctx is done.
func (l *liveSessions) poll(ctx context.Context, p *lightClient) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		start := time.Now()
		err := p.exec("NOOP")
		l.recordPoll(time.Since(start), err)
		if err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (l *liveSessions) recordPoll(latency time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.latencies = append(l.latencies, latency)
	if err != nil {
		l.lost++
		l.lastErr = err
	}
}

func (l *liveSessions) stop() {
	l.cancel()
	_ = l.workers.Wait() // errors are recorded
}
