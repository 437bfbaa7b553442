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
)

// livers are sessions that live while others crowd the door.
const livers = 200

// Three times the logins that the gateway can do are offered. It does nearly as
// many as before, turns the others away at once, and those who were in stay in.
//
// The TLS of a crowd costs it nearly what it costs the gateway, so the gateway
// gets a part of a core, and the crowd and the stub what they need of the rest.
func TestThreeTimesTheLoginsThatCanBeDoneCostTheOthersNothing(t *testing.T) {
	if os.Getenv(soak) != "1" {
		t.Skip("a measurement, for a quiet machine: make overload")
	}
	ca := testbed.NewCA(t)
	t.Setenv("GOMAXPROCS", "1") // of the gateway and the crowds
	b := startBinary(t, ca, fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", startStub(t, nil).address()),
		"routing: {source: static, static: {default: east}}")
	t.Logf("the gateway has %s", confine(t, b.process.PID()))
	phones := b.phones(t, livers)
	visit := orders{Address: b.at["implicit"], CA: ca.File, Workers: 16, Long: 10 * time.Second}
	sendCrowd(t, visit) // until caches are filled
	peak := b.closedLoop(t, visit)
	lives := live(t.Context(), phones)
	crowded := visit
	crowded.Rate, crowded.Long = 3*peak, time.Minute
	seen := sendCrowd(t, crowded)
	lives.stop()
	peak = max(peak, b.closedLoop(t, visit)) // other work on the machine comes and goes

	share := float64(seen.Served) / crowded.Long.Seconds() / peak
	refused := b.refusals(t)
	t.Logf("%.0f logins/s offered, %.0f %% of the peak done: %v", crowded.Rate, 100*share, seen)
	t.Logf("refused, from accept to the end: %s", spread(refused))
	t.Logf("live sessions: %d of %d lost; NOOP, %s; %s", lives.lost, livers, spread(lives.took), b.held(t))
	if lives.lost > 0 {
		t.Errorf("%d live sessions were lost: %v", lives.lost, lives.why)
	}
	if share < 0.8 {
		t.Errorf("%.0f %% of the peak was done", 100*share)
	}
	if slices.Sort(refused); len(refused) == 0 || refused[len(refused)*99/100] > 100*time.Millisecond {
		t.Error("nobody was refused, or not within 100 ms")
	}
}

// phones are n sessions that have logged in, one after the other.
func (b *binary) phones(t *testing.T, n int) []*phone {
	t.Helper()
	phones := make([]*phone, n)
	for i := range phones {
		p, err := call(b.endpoint("implicit"), fmt.Sprintf("127.8.0.%d", 1+i%250))
		if err == nil {
			t.Cleanup(func() { _ = p.conn.Close() })
			err = p.ask(fmt.Sprintf("LOGIN liver%d %s", i, password))
		}
		if err != nil {
			t.Fatalf("log in: %v", err)
		}
		phones[i] = p
	}
	return phones
}

// closedLoop is how many logins a second a crowd makes that waits for each.
func (b *binary) closedLoop(t *testing.T, o orders) float64 {
	t.Helper()
	seen := sendCrowd(t, o)
	rate := float64(seen.Served) / o.Long.Seconds()
	t.Logf("%d at a time: %.0f logins/s; %v", o.Workers, rate, seen)
	return rate
}

// refusals are how long the gateway had the connections that it refused because
// it was busy.
func (b *binary) refusals(t *testing.T) (took []time.Duration) {
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
			took = append(took, time.Duration(record.Took*float64(time.Millisecond)))
		}
	}
	return took
}

// confine gives a process four tenths of a core, and those whatever else the
// machine does, where control groups can be made; it says what came of it.
func confine(t *testing.T, pid int) string {
	t.Helper()
	name := fmt.Sprintf("imapgate-%d", pid)
	for dir, files := range map[string][][2]string{
		"/sys/fs/cgroup/cpu/" + name: {{"cpu.cfs_period_us", "10000"}, {"cpu.cfs_quota_us", "4000"}, {"cpu.shares", "10240"}},
		"/sys/fs/cgroup/" + name:     {{"cpu.max", "4000 10000"}, {"cpu.weight", "1000"}},
	} {
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil { // the kernel has not made it a group
			_ = os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.procs"), []byte(fmt.Sprint(pid)), 0o644) // or it is gone
			testbed.Within(t, testbed.Patience, "a control group to be removed", func() bool { return os.Remove(dir) == nil })
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

// lives are sessions that say NOOP every second.
type lives struct {
	// Set once.
	cancel  context.CancelFunc
	workers errgroup.Group

	mu sync.Mutex
	// Guarded by mu.
	took []time.Duration
	lost int
	why  error
}

// live starts them; stop waits for them.
func live(ctx context.Context, phones []*phone) *lives {
	l := &lives{}
	ctx, l.cancel = context.WithCancel(ctx)
	for _, p := range phones {
		l.workers.Go(func() error { return l.one(ctx, p) })
	}
	return l
}

// one ends with its session or when it is told to.
func (l *lives) one(ctx context.Context, p *phone) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		began := time.Now()
		err := p.ask("NOOP")
		l.note(time.Since(began), err)
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

func (l *lives) note(took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.took = append(l.took, took)
	if err != nil {
		l.lost++
		l.why = err
	}
}

func (l *lives) stop() {
	l.cancel()
	_ = l.workers.Wait() // noted
}
