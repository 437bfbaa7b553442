package model

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// plan is which runs a test makes. MODEL_SEED, MODEL_SEEDS, MODEL_TIME,
// MODEL_TURNS, MODEL_LINES and MODEL_WORKERS in the environment change it.
type plan struct {
	Config
	seed    uint64        // of the first run; 0: drawn by lot
	seeds   int           // how many at most
	time    time.Duration // no run is begun after it
	workers int           // runs at a time, each with a gateway of its own
}

// slice is what a test does when nobody asks for more.
func slice(c Config) plan {
	c.Turns = 200
	p := plan{Config: c, seeds: 40, time: 6 * time.Second, workers: 2}
	return p
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
	number("MODEL_SEEDS", func(n uint64) { p.seeds, p.time = int(n), time.Hour })
	number("MODEL_SEED", func(n uint64) { p.seed, p.seeds, p.workers = n, 1, 1 })
	if text := os.Getenv("MODEL_TIME"); text != "" {
		limit, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("MODEL_TIME: %v", err)
		}
		p.time, p.seeds = limit, max(p.seeds, 1<<20)
	}
	if p.seed == 0 {
		p.seed = 1 + rand.Uint64N(1<<40)
	}
	return p
}

// run makes the runs of a plan until one fails.
func (p plan) run(t *testing.T, backend *testbed.Dovecot) {
	t.Helper()
	p = p.asked(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var (
		names, next atomic.Uint64
		mu          sync.Mutex
		sum         Stats
		wg          sync.WaitGroup
	)
	began := time.Now()
	for range p.workers {
		breaker := startBreaker(t, backend.Plain)
		c := p.Config
		c.Backend, c.Proxied = backend.Plain, breaker.Address()
		if c.Mode != Direct {
			c.Proxied = startGateway(t, c.Mode, breaker.Address())
		}
		wg.Go(func() {
			for ctx.Err() == nil && time.Since(began) < p.time {
				n := next.Add(1)
				if n > uint64(p.seeds) {
					next.Add(^uint64(0))
					return
				}
				c.Seed, c.Serial = p.seed+n-1, names.Add(1)
				s, err := once(ctx, c, breaker)
				mu.Lock()
				sum = sum.plus(s)
				mu.Unlock()
				if err != nil && ctx.Err() == nil {
					cancel()
					t.Errorf("%v\nreplay it with MODEL_SEED=%d and this test", err, c.Seed)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds from %d, %.1f a second: %+v", next.Load(), p.seed, float64(next.Load())/time.Since(began).Seconds(), sum)
}

// once is one seed.
func once(ctx context.Context, c Config, breaker *Breaker) (Stats, error) {
	w, err := NewWorld(c, breaker)
	if err != nil {
		return Stats{}, fmt.Errorf("seed %d: %w", c.Seed, err)
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

func TestModelWithAllClientsAtOnce(t *testing.T) {
	backend := startBackend(t)
	for _, c := range []Config{
		{Mode: Direct, Faults: NoFaults}, {Mode: Splice, Faults: NoFaults}, {Mode: Splice, Faults: AllFaults},
	} {
		t.Run(string(c.Mode)+"/"+string(c.Faults), func(t *testing.T) {
			c.Racing = true
			slice(c).run(t, backend)
		})
	}
}
