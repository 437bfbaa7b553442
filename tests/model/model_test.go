package model

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/proxy/relay/mux"
)

// plan is the set of runs of a test. The environment variables MODEL_SEED, MODEL_SEEDS,
// MODEL_TURNS, MODEL_LINES, MODEL_WORKERS and MODEL_KEEP_GOING change it.
type plan struct {
	Config
	seed      uint64 // of the first run; 0: derived from testbed.Seed
	seeds     int    // number of runs
	workers   int    // concurrent runs, each with its own gateway
	keepGoing bool   // continue after a failed run
}

// defaultPlan returns the plan of a test without environment variables. In mode resume, two
// seeds with all faults have some of each kind.
func defaultPlan(c Config) plan {
	c.Turns = 200
	return plan{Config: c, seeds: 2, workers: 2}
}

// applyEnv returns the plan changed by the environment.
func (p plan) applyEnv(t *testing.T) plan {
	t.Helper()
	number := func(name string, set func(uint64)) {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			set(n)
		}
	}
	number("MODEL_TURNS", func(n uint64) { p.Turns = int(n) })
	number("MODEL_LINES", func(n uint64) { p.TranscriptLines = int(n) })
	number("MODEL_WORKERS", func(n uint64) { p.workers = int(n) })
	number("MODEL_SEEDS", func(n uint64) { p.seeds = int(n) })
	number("MODEL_SEED", func(n uint64) { p.seed, p.seeds, p.workers = n, 1, 1 })
	p.keepGoing = os.Getenv("MODEL_KEEP_GOING") != ""
	if p.seed == 0 {
		p.seed = testbed.Seed(t) + uint64(crc32.ChecksumIEEE([]byte(t.Name()))) // each test has its own seeds
	}
	return p
}

// users returns the users of all runs.
func (p plan) users() (all []string) {
	for n := range uint64(p.seeds) {
		all = append(all, Config{Seed: p.seed + n, Serial: n + 1}.Users()...)
	}
	return all
}

// run executes the runs of the plan until one fails.
func (p plan) run(t *testing.T, backend *backend) {
	t.Helper()
	p = p.applyEnv(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var (
		next atomic.Uint64
		mu   sync.Mutex
		sum  Stats
		wg   sync.WaitGroup
	)
	if err := backend.addUsers(p.users()...); err != nil { // before any login, because Cyrus denies logins during it
		t.Fatalf("add users: %v", err)
	}
	start := time.Now()
	for range p.workers {
		faultProxy := startFaultProxy(t, backend.address)
		c, dir := p.Config, t.TempDir()
		c.BackendAddress, c.Quirks = backend.address, backend.quirks
		wg.Go(func() {
			for ctx.Err() == nil {
				n := next.Add(1)
				if n > uint64(p.seeds) {
					next.Add(^uint64(0))
					return
				}
				c.Seed, c.Serial = p.seed+n-1, n
				s, err := runSeed(ctx, c, faultProxy, dir)
				mu.Lock()
				sum = sum.add(s)
				mu.Unlock()
				if err != nil && ctx.Err() == nil {
					if !p.keepGoing {
						cancel()
					}
					t.Errorf("%v\nreplay: %s", err, replayCommand(c))
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds from %d, %.1f a second: %+v", next.Load(), p.seed, float64(next.Load())/time.Since(start).Seconds(), sum)
}

// replayCommand returns the shell command that repeats a run.
func replayCommand(c Config) string {
	s := fmt.Sprintf("MODEL_SEED=%d MODEL_MODE=%s MODEL_FAULTS=%s", c.Seed, c.Mode, c.Faults)
	if c.UIDPrefetch != "" {
		s += " MODEL_UID_PREFETCH=" + c.UIDPrefetch
	}
	if c.Verify != "" {
		s += " MODEL_VERIFY=" + c.Verify
	}
	if c.Detach {
		s += " MODEL_DETACH=1"
	}
	if c.Moves {
		s += " MODEL_MOVES=1"
	}
	if c.Concurrent {
		s += " MODEL_CONCURRENT=1"
	}
	return s + " go test -count=1 -run TestModelFromEnvironment ./tests/model"
}

// runSeed executes one run with its own gateway.
func runSeed(ctx context.Context, c Config, faultProxy *FaultProxy, dir string) (s Stats, err error) {
	c.TestedAddress = faultProxy.Address()
	var moveSome func(*rand.Rand)
	if c.Mode != Direct {
		g, startErr := startGateway(c, faultProxy.Address(), dir)
		if startErr != nil {
			return s, fmt.Errorf("start a gateway: %w", startErr)
		}
		c.TestedAddress = g.address()
		if c.Moves {
			moveSome = g.moveSome
		}
		defer func() {
			log, closeErr := g.close()
			if err = errors.Join(err, closeErr); err != nil {
				err = fmt.Errorf("%w\nend of the gateway's log:\n%s", err, log)
			}
		}()
	}
	w, err := NewSimulation(c, faultProxy)
	if err != nil {
		return s, fmt.Errorf("seed %d: %w", c.Seed, err)
	}
	w.moveSome = moveSome
	return w.Run(ctx)
}

// add returns the sum of two runs.
func (s Stats) add(o Stats) Stats {
	s.Turns += o.Turns
	s.SessionsEnded += o.SessionsEnded
	s.ExpungeIssued += o.ExpungeIssued
	s.Copies += o.Copies
	s.Checks += o.Checks
	s.Moves += o.Moves
	s.Faults.BetweenCommands += o.Faults.BetweenCommands
	s.Faults.InFlight += o.Faults.InFlight
	s.Faults.InsideResponse += o.Faults.InsideResponse
	s.Faults.Stalled += o.Faults.Stalled
	s.Faults.Refused += o.Faults.Refused
	return s
}

// TestModelFromEnvironment is for long runs. MODEL_MODE is the mode, MODEL_FAULTS the
// FaultLevel (default all). MODEL_UID_PREFETCH and MODEL_VERIFY are settings of the
// gateway. MODEL_DETACH, MODEL_MOVES and MODEL_CONCURRENT are on if not empty.
func TestModelFromEnvironment(t *testing.T) {
	c := Config{
		Mode: Mode(os.Getenv("MODEL_MODE")), Faults: FaultLevel(cmp.Or(os.Getenv("MODEL_FAULTS"), string(AllFaults))),
		UIDPrefetch: os.Getenv("MODEL_UID_PREFETCH"), Verify: os.Getenv("MODEL_VERIFY"), Detach: os.Getenv("MODEL_DETACH") != "", Moves: os.Getenv("MODEL_MOVES") != "", Concurrent: os.Getenv("MODEL_CONCURRENT") != "",
	}
	if c.Mode == "" {
		t.Skip("MODEL_MODE is not set")
	}
	if !slices.Contains([]Mode{Direct, Splice, Reuse, Resume}, c.Mode) ||
		!slices.Contains([]FaultLevel{NoFaults, BetweenFaults, AllFaults}, c.Faults) {
		t.Fatalf("MODEL_MODE is %s, MODEL_FAULTS is %s", c.Mode, c.Faults)
	}
	defaultPlan(c).run(t, startBackend(t))
}

func TestModelOfTheBackendItself(t *testing.T) {
	backend := startBackend(t)
	for _, faults := range []FaultLevel{NoFaults, BetweenFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			defaultPlan(Config{Mode: Direct, Faults: faults}).run(t, backend)
		})
	}
}

func TestModelOfSplice(t *testing.T) {
	backend := startBackend(t)
	for _, faults := range []FaultLevel{NoFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			defaultPlan(Config{Mode: Splice, Faults: faults}).run(t, backend)
		})
	}
}

// Concurrent clients make runs of one seed differ, so this test is for exploration and
// runs only if MODEL_SEEDS is set. It has no faults in mode resume: the allowed results
// of a command would depend on the other clients, which the model cannot know.
func TestModelWithConcurrentClients(t *testing.T) {
	if os.Getenv("MODEL_SEEDS") == "" {
		t.Skip("MODEL_SEEDS is not set")
	}
	backend := startBackend(t)
	for _, c := range []Config{
		{Mode: Direct, Faults: NoFaults}, {Mode: Splice, Faults: NoFaults}, {Mode: Splice, Faults: AllFaults},
		{Mode: Reuse, Faults: NoFaults}, {Mode: Resume, Faults: NoFaults},
	} {
		t.Run(string(c.Mode)+"/"+string(c.Faults), func(t *testing.T) {
			c.Concurrent = true
			defaultPlan(c).run(t, backend)
		})
	}
}

func TestModelOfReuse(t *testing.T) {
	backend := startBackend(t)
	for _, faults := range []FaultLevel{NoFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			defaultPlan(Config{Mode: Reuse, Faults: faults}).run(t, backend)
		})
	}
}

func TestModelOfResume(t *testing.T) {
	backend := startBackend(t)
	t.Run("late UID prefetch", func(t *testing.T) {
		defaultPlan(Config{Mode: Resume, Faults: NoFaults, UIDPrefetch: mux.PrefetchAuto, Verify: mux.CheckAlways}).run(t, backend)
	})
	for _, faults := range []FaultLevel{NoFaults, BetweenFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			defaultPlan(Config{Mode: Resume, Faults: faults}).run(t, backend)
		})
		t.Run("detach/"+string(faults), func(t *testing.T) {
			defaultPlan(Config{Mode: Resume, Faults: faults, Detach: true}).run(t, backend)
		})
		t.Run("moves/"+string(faults), func(t *testing.T) {
			defaultPlan(Config{Mode: Resume, Faults: faults, Moves: true}).run(t, backend)
		})
	}
}
