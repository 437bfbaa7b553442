package testbed

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// seedEnv names the environment variable with a seed or randomSeed; unset means 1.
const (
	seedEnv    = "IMAPGATE_SEED"
	randomSeed = "random"
)

// Seed returns the seed for a test's random data, and logs it. By default every run uses
// the same seed. IMAPGATE_SEED sets another: "random", or a number to repeat a run.
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
