//go:build !unix

package plainfile

// CheckAppend is known on Unix only.
func CheckAppend(string, bool) error { return nil }

// CheckReplace is known on Unix only.
func CheckReplace(string) error { return nil }
