//go:build !mutants

package pool

import (
	"testing"

	"imapgate/internal/mutant"
	"imapgate/internal/testbed"
)

func TestALeftOutCheckIsNoticed(t *testing.T) {
	mutants := testbed.BuildMutants(t)
	for m, tests := range map[mutant.Mutant][]string{
		"":                    {"TestNoLeaseIs", "TestWhatIsSaid", "TestALeaseHas"},
		mutant.BufferCheck:    {"TestNoLeaseIs", "TestWhatIsSaid"},
		mutant.DeferredEnable: {"TestNoLeaseIs", "TestALeaseHas"},
	} {
		for _, name := range tests {
			mutants.Notices(t, m, name)
		}
	}
}
