//go:build unix

package plainfile

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// pathsVariable names the environment variable with the paths that the test program checks as
// its user.
const pathsVariable = "PLAINFILE_TEST_PATHS"

func TestMain(m *testing.M) {
	paths := os.Getenv(pathsVariable)
	if paths == "" {
		os.Exit(m.Run())
	}
	for _, path := range filepath.SplitList(paths) {
		plain, read := CheckAppend(path, false), CheckAppend(path, true)
		os.Stdout.WriteString(filepath.Base(path) + ": " + errorText(plain) + " / " + errorText(read) + "\n")
	}
}

func errorText(err error) string {
	if err == nil {
		return "ok"
	}
	return err.Error()
}

func TestCheckAppendLeavesNoFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(os.WriteFile(at("there"), []byte("x"), 0o600), os.Mkdir(at("folder"), 0o700), syscall.Mkfifo(at("fifo"), 0o600),
		os.Symlink(at("there"), at("link")), os.Symlink("made", at("dangling")), os.Symlink("none/made", at("lost")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"there": "", "missing": "", "fifo": "", "link": "", "dangling": "",
		"folder": "is a directory", "none/file": "does not exist", "lost": "does not exist", "there/file": "not a directory",
	} {
		err := CheckAppend(at(name), true)
		if err != nil && !strings.HasPrefix(err.Error(), dir) && !strings.HasPrefix(err.Error(), "directory "+dir) {
			t.Errorf("%s: the error does not name it: %v", name, err)
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 6 {
		t.Errorf("entries after the check: %v, %v", left, err)
	}
}

func TestCheckAppendRefusesOtherUsersFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to change owners")
	}
	dir, err := os.MkdirTemp("", "plainfile")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := func(name string) string { return filepath.Join(dir, name) }
	program, err := os.ReadFile(os.Args[0])
	err = errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(at("program"), program, 0o755),
		os.WriteFile(at("root's"), nil, 0o640), os.WriteFile(at("given"), nil, 0o600), os.Chown(at("given"), 65532, 65532),
		os.WriteFile(at("written only"), nil, 0o200), os.Chown(at("written only"), 65532, 65532))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(at("program"))
	cmd.Env = []string{pathsVariable + "=" + strings.Join([]string{at("root's"), at("given"), at("written only"), at("missing")}, ":")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	for _, want := range []string{
		"root's: " + at("root's") + " cannot be written by user ", ": it belongs to root, mode 0640 / ", "given: ok / ok", "written only: ok / " + at("written only"),
		"missing: " + dir + " cannot be written to by user ",
	} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("no %q: %v\n%s", want, err, out)
		}
	}
}
