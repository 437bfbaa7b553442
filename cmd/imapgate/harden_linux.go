package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// hardenProcess keeps passwords out of core dumps and out of reach of other
// processes of the same user (ptrace, /proc/PID/mem).
func hardenProcess() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("disable core dumps: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process not dumpable: %w", err)
	}
	return nil
}
