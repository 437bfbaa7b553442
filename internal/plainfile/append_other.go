//go:build !unix

package plainfile

// Appendable is known on Unix only.
func Appendable(string, bool) error { return nil }

// Replaceable is known on Unix only.
func Replaceable(string) error { return nil }
