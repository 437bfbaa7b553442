//go:build !unix

package main

// allowBackground does nothing on systems without job control.
func allowBackground() {}
