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

// mutantPatience bounds the building and each run.
const mutantPatience = 3 * time.Minute

// BuildMutants builds the tests of the package in the current folder.
func BuildMutants(t testing.TB) Mutants {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), mutantPatience)
	defer cancel()
	m := Mutants{filepath.Join(t.TempDir(), "mutants")}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", m.program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return m
}

// Notices wants the tests that match to fail with the check left out, and to pass
// without a mutant.
func (m Mutants) Notices(t testing.TB, out mutant.Mutant, tests string, env ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), mutantPatience)
	defer cancel()
	run := exec.CommandContext(ctx, m.program, "-test.run", tests, "-test.count=1", "-test.v")
	run.Env = append(append(os.Environ(), "IMAPGATE_MUTANT="+string(out)), env...)
	said, err := run.CombinedOutput()
	if noticed := err != nil; noticed != (out != "") {
		t.Errorf("%s with %q left out: noticed is %v\n%s", tests, out, noticed, said)
	}
}
