package testbed

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imapgate/internal/mutant"
)

// Mutants is a package's tests, built so that a check can be left out.
type Mutants struct{ program string }

// mutantTimeout bounds the building and each run.
const mutantTimeout = 3 * time.Minute

// BuildMutants builds the tests of the package in the current folder.
func BuildMutants(t testing.TB) Mutants {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), mutantTimeout)
	defer cancel()
	m := Mutants{filepath.Join(t.TempDir(), "mutants")}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", m.program, ".")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return m
}

// CheckDetected wants the tests that match to fail with the check left out, and to pass
// without a mutant.
func (m Mutants) CheckDetected(t testing.TB, disabled mutant.Mutant, tests string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), mutantTimeout)
	defer cancel()
	run := exec.CommandContext(ctx, m.program, "-test.run", tests, "-test.count=1", "-test.v")
	run.Env = append(append(os.Environ(), "IMAPGATE_MUTANT="+string(disabled)), env...)
	output, err := run.CombinedOutput()
	if detected := err != nil; detected != (disabled != "") {
		t.Errorf("%s with %q left out: noticed is %v\n%s", tests, disabled, detected, output)
	}
}
