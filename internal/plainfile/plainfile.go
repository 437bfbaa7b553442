// Package plainfile opens files that must be regular ones: whatever else stands at
// a path, a FIFO without a writer for instance, is an error at once, and nothing to
// wait for. It also says whether a file could be written, and reads what Windows wrote.
package plainfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
)

// What is wrong with a file.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrOwner      = errors.New("it belongs to another user; only files of the gateway's own user and of root are believed")
	ErrWritable   = errors.New("others may write to it; chmod go-w it")
)

// Open opens a regular file for reading. The error is a *fs.PathError.
func Open(path string) (*os.File, fs.FileInfo, error) {
	return open(path, 0, func(fs.FileInfo) error { return nil })
}

// OpenOwned is Open for a file that this program has written: no symbolic link, which
// belongs to the program's user or to root, and to which nobody else may write.
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

// WithoutPath is an error of package os without the path, for a text that has it already.
func WithoutPath(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

func open(path string, flags int, check func(fs.FileInfo) error) (*os.File, fs.FileInfo, error) {
	// O_NONBLOCK keeps a FIFO without a writer from holding us up.
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
		_ = f.Close() // it was only opened
		return nil, nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return f, info, nil
}
