//go:build unix

package plainfile

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// makeFiles makes one file of each type and returns their paths.
func makeFiles(t *testing.T) map[string]string {
	t.Helper()
	dir := t.TempDir()
	all := map[string]string{}
	for _, name := range []string{"plain", "group", "others", "read by all", "fifo", "folder", "link", "socket", "missing"} {
		all[name] = filepath.Join(dir, name)
	}
	for name, mode := range map[string]os.FileMode{"plain": 0o600, "group": 0o620, "others": 0o602, "read by all": 0o644} {
		if err := errors.Join(os.WriteFile(all[name], []byte("text"), 0o600), os.Chmod(all[name], mode)); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", all["socket"])
	if err := errors.Join(err, syscall.Mkfifo(all["fifo"], 0o600), os.Mkdir(all["folder"], 0o700), os.Symlink(all["plain"], all["link"])); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return all
}

func TestOnlyRegularFilesAreOpened(t *testing.T) {
	for name, c := range map[string]struct{ open, own error }{
		"plain":       {nil, nil},
		"read by all": {nil, nil},
		"group":       {nil, ErrWritable},
		"others":      {nil, ErrWritable},
		"link":        {nil, ErrNotRegular},
		"fifo":        {ErrNotRegular, ErrNotRegular},
		"folder":      {ErrNotRegular, ErrNotRegular},
		"socket":      {syscall.ENXIO, syscall.ENXIO},
		"missing":     {fs.ErrNotExist, fs.ErrNotExist},
	} {
		path := makeFiles(t)[name]
		for _, way := range []struct {
			open func(string) (*os.File, fs.FileInfo, error)
			want error
		}{{Open, c.open}, {OpenOwned, c.own}} {
			f, info, err := way.open(path)
			if !errors.Is(err, way.want) || (err == nil) != (way.want == nil) {
				t.Errorf("%s: %v, want %v", name, err, way.want)
			}
			var at *fs.PathError
			if err != nil && (!errors.As(err, &at) || at.Path != path) {
				t.Errorf("%s: the error does not name it: %v", name, err)
			}
			if f != nil {
				if text, err := io.ReadAll(f); err != nil || string(text) != "text" || info.Size() != 4 {
					t.Errorf("%s: %q, %v", name, text, err)
				}
				_ = f.Close()
			}
		}
	}
}

func TestOpenOwnedRefusesOtherUsersFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change owners")
	}
	path := makeFiles(t)["plain"]
	if err := os.Chown(path, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	if _, _, err := OpenOwned(path); !errors.Is(err, ErrOwner) {
		t.Errorf("%v", err)
	}
}

func TestReplaceLeavesTheOldFileIfItFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	write := func(text string, err error) error {
		return Replace(path, func(f *os.File) error {
			_, writeErr := f.WriteString(text)
			return errors.Join(writeErr, err)
		})
	}
	if err := write("old", nil); err != nil {
		t.Fatal(err)
	}
	failure := errors.New("the disk is full")
	if err := write("ne", failure); !errors.Is(err, failure) {
		t.Errorf("error of the second: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "old" {
		t.Errorf("after a failure: %q, %v", text, err)
	}
	if err := write("new", nil); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != 3 || info.Mode().Perm() != 0o600 {
		t.Errorf("the new file: %v, %v", info, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("files left: %v, %v", left, err)
	}
}
