// Package plainfile opens and replaces regular files. Anything else at a path, such as a FIFO without a
// writer, is an error at once instead of blocking. The package also checks whether a file could
// be written, and decodes text written on Windows.
package plainfile

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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

// Replace replaces a file by what write writes, or makes it, with mode 0600. After a crash it is
// the old or the new one, and a reader never sees a part.
func Replace(path string, write func(*os.File) error) error {
	folder := filepath.Dir(path)
	temporary, err := os.CreateTemp(folder, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name()) // fails after the rename
	if err := errors.Join(write(temporary), temporary.Sync(), temporary.Close()); err != nil {
		return err
	}
	if err := os.Rename(temporary.Name(), path); err != nil {
		return err
	}
	return syncFolder(folder)
}

// syncFolder makes a rename in a folder last.
func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
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

// ErrUTF16 is returned for a text in UTF-16, which Windows programs write.
var ErrUTF16 = errors.New("it is written in UTF-16; save it as UTF-8")

// byteOrderMark is U+FEFF in UTF-8, which Windows programs write at the beginning of a text.
var byteOrderMark = []byte("\xef\xbb\xbf")

// DecodeText returns a text without the byte order mark that an editor may have added. The
// error is ErrUTF16 for UTF-16, which always begins with a mark.
func DecodeText(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte("\xff\xfe")) || bytes.HasPrefix(b, []byte("\xfe\xff")) {
		return nil, ErrUTF16
	}
	return bytes.TrimPrefix(b, byteOrderMark), nil
}

// NewTextReader is DecodeText for a stream.
func NewTextReader(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	start, _ := buffered.Peek(len(byteOrderMark)) // a shorter file has no mark, and an error is returned again
	rest, err := DecodeText(start)
	if err != nil {
		return nil, err
	}
	_, err = buffered.Discard(len(start) - len(rest))
	return buffered, err
}
