//go:build !unix

package descriptors

// Limit returns no limit: this system has none that can be queried.
func Limit() int64 { return Unlimited }
