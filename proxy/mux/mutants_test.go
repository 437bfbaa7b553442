//go:build !mutants

package mux

import (
	"testing"

	"imapgate/internal/mutant"
	"imapgate/internal/testbed"
)

// The check that needs two connections to disagree for a moment is guarded by a
// dialogue: no real backend does that on command.
func TestADialogueDetectsAMutant(t *testing.T) {
	mutants := testbed.BuildMutants(t)
	for _, m := range []mutant.Mutant{"", mutant.ModseqFromAux} {
		mutants.CheckDetected(t, m, "TestDialogues/What_an_auxiliary_connection_knows")
	}
}
