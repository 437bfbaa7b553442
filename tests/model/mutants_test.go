//go:build !mutants

package model

import (
	"testing"

	"imapgate/internal/mutant"
	"imapgate/internal/testbed"
)

// The model must notice when one of the checks is left out that it is there to
// guard. What needs two connections to disagree for a moment, and what the pool
// guards, their own packages' tests show.
func TestModelDetectsMutants(t *testing.T) {
	mutants := testbed.BuildMutants(t)
	for _, m := range []mutant.Mutant{"", mutant.PendingExpungeHold, mutant.ReattachFlags, mutant.TranslateAfterFlush} {
		seeds := "20"
		if m == "" {
			seeds = "2"
		}
		mutants.CheckDetected(t, m, "^TestModelFromEnvironment$", "MODEL_MODE=resume", "MODEL_DETACH=1", "MODEL_FAULTS=between", "MODEL_SEEDS="+seeds)
	}
}
