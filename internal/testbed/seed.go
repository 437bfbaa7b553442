package testbed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// seedEnv holds another seed than the fixed one, or randomSeed.
const (
	seedEnv    = "IMAPGATE_SEED"
	randomSeed = "random"
)

// Seed returns the seed of what a test makes up, and logs it. It is the same in
// every run. IMAPGATE_SEED sets another one, to explore ("random") or to play a
// run again.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	switch text := os.Getenv(seedEnv); text {
	case "":
	case randomSeed:
		seed = 1 + rand.Uint64N(1<<40)
	default:
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	t.Logf("%s=%d", seedEnv, seed)
	return seed
}
