package model

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/proxy/mux"
)

// plan is which runs a test makes. MODEL_SEED, MODEL_SEEDS, MODEL_TURNS,
// MODEL_LINES, MODEL_WORKERS and MODEL_GO_ON in the environment change it.
type plan struct {
	Config
	seed    uint64 // of the first run; 0: testbed.Seed
	seeds   int    // how many
	workers int    // runs at a time, each with a gateway of its own
	goOn    bool   // after a run that failed
}

// slice is what a test does when nobody asks for more.
func slice(c Config) plan {
	c.Turns = 200
	return plan{Config: c, seeds: 6, workers: 2}
}

// asked is the plan as the environment changes it.
func (p plan) asked(t *testing.T) plan {
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
	number("MODEL_LINES", func(n uint64) { p.Lines = int(n) })
	number("MODEL_WORKERS", func(n uint64) { p.workers = int(n) })
	number("MODEL_SEEDS", func(n uint64) { p.seeds = int(n) })
	number("MODEL_SEED", func(n uint64) { p.seed, p.seeds, p.workers = n, 1, 1 })
	p.goOn = os.Getenv("MODEL_GO_ON") != ""
	if p.seed == 0 {
		p.seed = testbed.Seed(t) + uint64(crc32.ChecksumIEEE([]byte(t.Name()))) // no two tests play the same
	}
	return p
}

// users are those of all runs.
func (p plan) users() (all []string) {
	for n := range uint64(p.seeds) {
		all = append(all, Config{Seed: p.seed + n, Serial: n + 1}.Users()...)
	}
	return all
}

// run makes the runs of a plan until one fails.
func (p plan) run(t *testing.T, backend *backend) {
	t.Helper()
	p = p.asked(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var (
		next atomic.Uint64
		mu   sync.Mutex
		sum  Stats
		wg   sync.WaitGroup
	)
	if err := backend.join(p.users()...); err != nil { // before anybody logs in: a Cyrus would deny those who do meanwhile
		t.Fatalf("make users: %v", err)
	}
	began := time.Now()
	for range p.workers {
		breaker := startBreaker(t, backend.address)
		c, dir := p.Config, t.TempDir()
		c.Backend, c.Odd = backend.address, backend.odd
		wg.Go(func() {
			for ctx.Err() == nil {
				n := next.Add(1)
				if n > uint64(p.seeds) {
					next.Add(^uint64(0))
					return
				}
				c.Seed, c.Serial = p.seed+n-1, n
				s, err := once(ctx, c, breaker, dir)
				mu.Lock()
				sum = sum.plus(s)
				mu.Unlock()
				if err != nil && ctx.Err() == nil {
					if !p.goOn {
						cancel()
					}
					t.Errorf("%v\nreplay: %s", err, replay(c))
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds from %d, %.1f a second: %+v", next.Load(), p.seed, float64(next.Load())/time.Since(began).Seconds(), sum)
}

// replay is how to make a run again.
func replay(c Config) string {
	s := fmt.Sprintf("MODEL_SEED=%d MODEL_MODE=%s MODEL_FAULTS=%s", c.Seed, c.Mode, c.Faults)
	if c.Learn != "" {
		s += " MODEL_LEARN=" + c.Learn
	}
	if c.Verify != "" {
		s += " MODEL_VERIFY=" + c.Verify
	}
	if c.Detach {
		s += " MODEL_DETACH=1"
	}
	if c.Racing {
		s += " MODEL_RACING=1"
	}
	return s + " go test -count=1 -run TestModelAsAsked ./tests/model"
}

// once is one seed, with a gateway of its own.
func once(ctx context.Context, c Config, breaker *Breaker, dir string) (s Stats, err error) {
	c.Proxied = breaker.Address()
	if c.Mode != Direct {
		g, failed := startGateway(c, breaker.Address(), dir)
		if failed != nil {
			return s, fmt.Errorf("start a gateway: %w", failed)
		}
		c.Proxied = g.address()
		defer func() {
			log, closeErr := g.close()
			if err = errors.Join(err, closeErr); err != nil {
				err = fmt.Errorf("%w\nthe gateway's log ends so:\n%s", err, log)
			}
		}()
	}
	w, err := NewWorld(c, breaker)
	if err != nil {
		return s, fmt.Errorf("seed %d: %w", c.Seed, err)
	}
	return w.Run(ctx)
}

// plus adds up what happened.
func (s Stats) plus(o Stats) Stats {
	s.Turns += o.Turns
	s.Ended += o.Ended
	s.ExpungeIssued += o.ExpungeIssued
	s.Copies += o.Copies
	s.Checks += o.Checks
	s.Broken.Between += o.Broken.Between
	s.Broken.Flight += o.Broken.Flight
	s.Broken.Inside += o.Broken.Inside
	s.Broken.Stalled += o.Broken.Stalled
	s.Broken.Refused += o.Broken.Refused
	return s
}

// The long runs: MODEL_MODE says through what, MODEL_FAULTS what is broken (all
// by default), MODEL_LEARN and MODEL_VERIFY are settings of the gateway, MODEL_DETACH
// and MODEL_RACING on or off.
func TestModelAsAsked(t *testing.T) {
	c := Config{
		Mode: Mode(os.Getenv("MODEL_MODE")), Faults: Faults(cmp.Or(os.Getenv("MODEL_FAULTS"), string(AllFaults))),
		Learn: os.Getenv("MODEL_LEARN"), Verify: os.Getenv("MODEL_VERIFY"), Detach: os.Getenv("MODEL_DETACH") != "", Racing: os.Getenv("MODEL_RACING") != "",
	}
	if c.Mode == "" {
		t.Skip("MODEL_MODE asks for nothing")
	}
	if !slices.Contains([]Mode{Direct, Splice, Reuse, Resume}, c.Mode) ||
		!slices.Contains([]Faults{NoFaults, BetweenFaults, AllFaults}, c.Faults) {
		t.Fatalf("MODEL_MODE is %s, MODEL_FAULTS is %s", c.Mode, c.Faults)
	}
	slice(c).run(t, startBackend(t))
}

func TestModelOfTheBackendItself(t *testing.T) {
	backend := startBackend(t)
	for _, faults := range []Faults{NoFaults, BetweenFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			slice(Config{Mode: Direct, Faults: faults}).run(t, backend)
		})
	}
}

func TestModelOfSplice(t *testing.T) {
	backend := startBackend(t)
	for _, faults := range []Faults{NoFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			slice(Config{Mode: Splice, Faults: faults}).run(t, backend)
		})
	}
}

// With losses, resume is tried by clients that take turns: where all act at once,
// what may become of a command depends on what others have done meanwhile, and the
// model cannot tell. What meets what is another thing in every run of one seed, so
// this is for exploring: MODEL_SEEDS asks for it.
func TestModelWithAllClientsAtOnce(t *testing.T) {
	if os.Getenv("MODEL_SEEDS") == "" {
		t.Skip("MODEL_SEEDS asks for nothing")
	}
	backend := startBackend(t)
	for _, c := range []Config{
		{Mode: Direct, Faults: NoFaults}, {Mode: Splice, Faults: NoFaults}, {Mode: Splice, Faults: AllFaults},
		{Mode: Reuse, Faults: NoFaults}, {Mode: Resume, Faults: NoFaults},
	} {
		t.Run(string(c.Mode)+"/"+string(c.Faults), func(t *testing.T) {
			c.Racing = true
			slice(c).run(t, backend)
		})
	}
}

func TestModelOfReuse(t *testing.T) {
	backend := startBackend(t)
	for _, faults := range []Faults{NoFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			slice(Config{Mode: Reuse, Faults: faults}).run(t, backend)
		})
	}
}

func TestModelOfResume(t *testing.T) {
	backend := startBackend(t)
	t.Run("learning late", func(t *testing.T) {
		slice(Config{Mode: Resume, Faults: NoFaults, Learn: mux.Auto, Verify: mux.Always}).run(t, backend)
	})
	for _, faults := range []Faults{NoFaults, BetweenFaults, AllFaults} {
		t.Run(string(faults), func(t *testing.T) {
			slice(Config{Mode: Resume, Faults: faults}).run(t, backend)
		})
		t.Run("detach/"+string(faults), func(t *testing.T) {
			slice(Config{Mode: Resume, Faults: faults, Detach: true}).run(t, backend)
		})
	}
}
