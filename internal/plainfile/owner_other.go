//go:build !unix

package plainfile

import "io/fs"

const noFollow = 0

func isLink(error) bool { return false }

func fileOwner(fs.FileInfo) (uid int, known bool) { return 0, false }
