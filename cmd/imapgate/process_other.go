//go:build !unix

package main

import "errors"

// dropToUser is supported on Unix only.
func dropToUser(name string) error {
	if name != "" {
		return errors.New("--user is supported on Unix only")
	}
	return nil
}

// warnUserMismatch does nothing without systemd.
func warnUserMismatch(string) []problem { return nil }

// allowBackground does nothing on systems without job control.
func allowBackground() {}

// keepOwner does nothing: files have no owner here.
func keepOwner(*os.File, string) error { return nil }
