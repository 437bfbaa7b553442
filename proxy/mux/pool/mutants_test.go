//go:build !mutants

package pool

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imapgate/internal/mutant"
)

func TestALeftOutCheckIsNoticed(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "pool")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for m, tests := range map[mutant.Mutant][]string{
		"":                    {"TestNoLeaseIs", "TestWhatIsSaid", "TestALeaseHas"},
		mutant.BufferCheck:    {"TestNoLeaseIs", "TestWhatIsSaid"},
		mutant.DeferredEnable: {"TestNoLeaseIs", "TestALeaseHas"},
	} {
		for _, name := range tests {
			run := exec.CommandContext(ctx, program, "-test.run", name, "-test.count=1")
			run.Env = append(os.Environ(), "IMAPGATE_MUTANT="+string(m))
			if out, err := run.CombinedOutput(); (err != nil) != (m != "") {
				t.Errorf("%s with %q left out: %v\n%s", name, m, err, out)
			}
		}
	}
}
