//go:build !linux

package keepalive

import "syscall"

// Control does nothing: TCP_USER_TIMEOUT exists only on Linux.
func Control(_, _ string, _ syscall.RawConn) error { return nil }
