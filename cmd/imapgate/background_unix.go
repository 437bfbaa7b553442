//go:build unix

package main

import (
	"os/signal"
	"syscall"
)

// allowBackground lets a process that reads its terminal run in the background: the
// read then returns an error instead of stopping the process.
func allowBackground() { signal.Ignore(syscall.SIGTTIN) }
