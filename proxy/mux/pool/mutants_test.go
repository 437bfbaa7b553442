//go:build mutants

package pool

import (
	"os"
	"os/exec"
	"testing"

	"imapgate/internal/mutant"
)

func TestALeftOutCheckIsNoticed(t *testing.T) {
	if os.Getenv("IMAPGATE_MUTANT") != "" {
		t.Skip("this is the build that is looked at")
	}
	for m, tests := range map[mutant.Mutant][]string{
		"":                    {"TestNoLeaseIs", "TestWhatIsSaid", "TestALeaseHas"},
		mutant.BufferCheck:    {"TestNoLeaseIs", "TestWhatIsSaid"},
		mutant.DeferredEnable: {"TestNoLeaseIs", "TestALeaseHas"},
	} {
		for _, name := range tests {
			cmd := exec.Command(os.Args[0], "-test.run", name, "-test.count=1")
			cmd.Env = append(os.Environ(), "IMAPGATE_MUTANT="+string(m))
			if out, err := cmd.CombinedOutput(); (err != nil) != (m != "") {
				t.Errorf("%s with %q left out: %v\n%s", name, m, err, out)
			}
		}
	}
}
