//go:build !linux

package keepalive

import "syscall"

// Control has nothing to set here: TCP_USER_TIMEOUT is Linux's.
func Control(_, _ string, _ syscall.RawConn) error { return nil }
