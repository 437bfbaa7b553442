//go:build !unix

package main

import "errors"

// becomeUser is for Unix only.
func becomeUser(name string) error {
	if name != "" {
		return errors.New("--user is for Unix only")
	}
	return nil
}

// doubtUser knows of no service.
func doubtUser(string) []finding { return nil }
