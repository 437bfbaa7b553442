//go:build !unix

package plainfile

// CheckAppend is implemented on Unix only.
func CheckAppend(string, bool) error { return nil }

// CheckReplace is implemented on Unix only.
func CheckReplace(string) error { return nil }
