package main

import (
	"slices"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"imapgate/internal/duration"
)

func TestEveryDurationOnTheCommandLineHasDaysAndWeeks(t *testing.T) {
	var flags []string
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Value.Type() != "duration" {
				return
			}
			flags = append(flags, f.Name)
			for text, want := range map[string]time.Duration{"1d": 24 * time.Hour, "2w": 14 * 24 * time.Hour, "1d12h": 36 * time.Hour} {
				if err := f.Value.Set(text); err != nil || f.Value.String() != duration.Format(want) {
					t.Errorf("%s --%s %s: %v, %v", cmd.Name(), f.Name, text, f.Value, err)
				}
			}
			if err := f.Value.Set("soon"); err == nil {
				t.Errorf("%s --%s soon is %v", cmd.Name(), f.Name, f.Value)
			}
		})
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(newRoot())
	if !slices.Contains(flags, "for") {
		t.Errorf("only %q were tried", flags)
	}
}
