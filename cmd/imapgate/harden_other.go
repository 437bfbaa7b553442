//go:build !linux

package main

// hardenProcess does nothing on systems other than Linux.
func hardenProcess() error { return nil }
