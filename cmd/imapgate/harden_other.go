//go:build !linux

package main

// hardenProcess has nothing to do where core dumps are not limited by the
// process itself.
func hardenProcess() error { return nil }
