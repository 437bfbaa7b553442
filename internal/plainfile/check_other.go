//go:build !unix

package plainfile

import "io/fs"

// CheckAppend is implemented on Unix only.
func CheckAppend(string, bool) error { return nil }

// CheckReplace is implemented on Unix only.
func CheckReplace(string) error { return nil }

const noFollow = 0

func isLink(error) bool { return false }

func fileOwner(fs.FileInfo) (uid int, known bool) { return 0, false }
