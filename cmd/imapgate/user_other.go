//go:build !unix

package main

import "errors"

// dropToUser is for Unix only.
func dropToUser(name string) error {
	if name != "" {
		return errors.New("--user is for Unix only")
	}
	return nil
}

// warnUserMismatch knows of no service.
func warnUserMismatch(string) []problem { return nil }
