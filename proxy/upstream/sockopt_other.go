//go:build !linux

package upstream

import "syscall"

// control has nothing to set here: TCP_USER_TIMEOUT is Linux's.
func control(_, _ string, _ syscall.RawConn) error { return nil }
