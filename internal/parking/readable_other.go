//go:build !unix

package parking

// isReadable returns false, so that the runtime waits for each event.
func isReadable(uintptr) bool { return false }
