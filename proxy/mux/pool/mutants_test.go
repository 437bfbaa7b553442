//go:build !mutants

package pool

import (
	"testing"

	"imapgate/internal/mutant"
	"imapgate/internal/testbed"
)

func TestMutantsAreDetected(t *testing.T) {
	mutants := testbed.BuildMutants(t)
	for m, tests := range map[mutant.Mutant][]string{
		"":                    {"TestLeasesNeverMix", "TestUnsolicitedResponse", "TestLeaseHas"},
		mutant.BufferCheck:    {"TestLeasesNeverMix", "TestUnsolicitedResponse"},
		mutant.DeferredEnable: {"TestLeasesNeverMix", "TestLeaseHas"},
	} {
		for _, name := range tests {
			mutants.CheckDetected(t, m, name)
		}
	}
}
