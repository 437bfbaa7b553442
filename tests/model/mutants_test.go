//go:build !mutants

package model

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imapgate/internal/mutant"
)

// The model must notice when one of the checks is left out that it is there to
// guard. What needs two connections to disagree for a moment, and what the pool
// guards, their own packages' tests show.
func TestTheModelNoticesWhatIsLeftOut(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "model")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, m := range []mutant.Mutant{"", mutant.GhostsHold, mutant.AttachFlags, mutant.MapThenFlush} {
		t.Run(string(m), func(t *testing.T) {
			run := exec.CommandContext(ctx, program, "-test.count=1", "-test.run=^TestModelAsAsked$")
			run.Env = append(os.Environ(), "IMAPGATE_MUTANT="+string(m), "MODEL_MODE=resume", "MODEL_DETACH=1",
				"MODEL_FAULTS=between", "MODEL_SEEDS=20")
			if m == "" {
				run.Env = append(run.Env, "MODEL_SEEDS=2")
			}
			out, err := run.CombinedOutput()
			if noticed := err != nil; noticed != (m != "") {
				t.Errorf("noticed: %v\n%s", noticed, out)
			}
		})
	}
}
