//go:build !mutants

package mux

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"imapgate/internal/mutant"
)

// The check that needs two connections to disagree for a moment is guarded by a
// dialogue: no real backend does that on command.
func TestAMutantIsHeardInADialogue(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	program := filepath.Join(t.TempDir(), "mux")
	if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "mutants", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, m := range []mutant.Mutant{"", mutant.MFromAux} {
		run := exec.CommandContext(ctx, program, "-test.run", "TestDialogues/What_an_auxiliary_connection_knows", "-test.count=1", "-test.v")
		run.Env = append(os.Environ(), "IMAPGATE_MUTANT="+string(m))
		out, err := run.CombinedOutput()
		if (err != nil) != (m != "") {
			t.Errorf("%q left out: %v\n%s", m, err, out)
		}
	}
}
