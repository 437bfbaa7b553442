//go:build mutants

package mutant

import "os"

// Is says whether m is left out, as the environment asks.
func Is(m Mutant) bool { return os.Getenv("IMAPGATE_MUTANT") == string(m) }
