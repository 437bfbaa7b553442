//go:build !unix

package main

// allowBackground does nothing where there is no job control.
func allowBackground() {}
