// Package plainfile opens regular files. Anything else at a path, such as a FIFO without a
// writer, is an error at once instead of blocking. The package also checks whether a file could
// be written, and decodes text written on Windows.
package plainfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// Reasons why OpenOwned refuses a file; Open returns only ErrNotRegular.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrOwner      = errors.New("it belongs to another user; only files of the gateway's own user and of root are accepted")
	ErrWritable   = errors.New("other users can write to it; run: chmod go-w FILE")
)

// Open opens a regular file for reading. The error is a *fs.PathError.
func Open(path string) (*os.File, fs.FileInfo, error) {
	return open(path, 0, func(fs.FileInfo) error { return nil })
}

// OpenOwned opens a file that this program has written. The file must not be a symbolic link.
// It must belong to the program's user or root, and no other user may be able to write to it.
func OpenOwned(path string) (*os.File, fs.FileInfo, error) {
	return open(path, noFollow, func(info fs.FileInfo) error {
		uid, known := fileOwner(info)
		switch {
		case known && uid != 0 && uid != os.Geteuid():
			return ErrOwner
		case known && info.Mode().Perm()&0o022 != 0:
			return ErrWritable
		}
		return nil
	})
}

// WithoutPath returns an error of package os without its path, for a text that already has it.
func WithoutPath(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func open(path string, flags int, check func(fs.FileInfo) error) (*os.File, fs.FileInfo, error) {
	// With O_NONBLOCK the open of a FIFO without a writer does not block.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|flags, 0)
	if isLink(err) {
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: ErrNotRegular}
	}
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err == nil {
		err = check(info)
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return f, info, nil
}
