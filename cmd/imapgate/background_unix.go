//go:build unix

package main

import (
	"os/signal"
	"syscall"
)

// allowBackground lets a process that reads its terminal run in the background, where
// the read is an error then and does not stop the process.
func allowBackground() { signal.Ignore(syscall.SIGTTIN) }
