package auth

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"go.uber.org/zap"

	"imapgate/internal/filewatch"
	"imapgate/internal/identity"
	"imapgate/internal/plainfile"
)

const (
	// maxFileSize bounds the passwd-file in bytes: about half a million users.
	maxFileSize = 64 << 20
	// maxLine bounds one line of it in bytes.
	maxLine = 8 << 10
	// maxListedErrors bounds how many bad lines are listed one by one.
	maxListedErrors = 50
)

// passwdFile is the method file. lookUp reads a snapshot, which only openPasswdFile and watch
// replace.
type passwdFile struct {
	// Set once.
	path  string
	names identity.Names
	log   *zap.Logger
	// Replaced as a whole by watch.
	users atomic.Pointer[userTable]
	// Owned by watch.
	initialInfo os.FileInfo // the file at the start; nil after the first check
	lastError   string      // last logged error; "" if the file was good
}

// userTable is the content of one passwd-file. It does not change once parsed.
type userTable struct {
	passwords map[identity.User]storedHash // bound: maxFileSize
	histogram histogram
}

func openPasswdFile(path string, names identity.Names, log *zap.Logger) (*passwdFile, error) {
	if path == "" {
		return nil, errors.New("method file needs the path of a passwd-file")
	}
	f := &passwdFile{path: filepath.Clean(path), names: names, log: log}
	u, info, err := f.load()
	if err != nil {
		return nil, fmt.Errorf("read passwd-file %s: %w", f.path, err)
	}
	f.initialInfo = info
	f.users.Store(u)
	if info.Mode().Perm()&0o004 != 0 {
		log.Warn("passwd-file can be read by every user of this machine", zap.String("file", f.path))
	}
	return f, nil
}

// lookUp implements passwordSource.
func (f *passwdFile) lookUp(_ context.Context, u identity.User) (storedHash, error) {
	if s, ok := f.users.Load().passwords[u]; ok {
		return s, nil
	}
	return storedHash{}, ErrUnknown
}

// typicalParams implements passwordSource.
func (f *passwdFile) typicalParams() hashParams { return f.users.Load().histogram.mostFrequent() }

// load opens and parses the file. It returns the FileInfo of the file it read, also when the
// file is invalid, and nil when it read none.
func (f *passwdFile) load() (*userTable, os.FileInfo, error) {
	file, info, err := plainfile.Open(f.path)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	if info.Size() > maxFileSize {
		return nil, info, fmt.Errorf("larger than %d MiB", maxFileSize>>20)
	}
	text, err := plainfile.NewTextReader(io.LimitReader(file, maxFileSize))
	if err != nil {
		return nil, info, err
	}
	u, err := parseUsers(text, f.names)
	if err != nil {
		return nil, info, err
	}
	// A truncated file that is being written in place may look complete.
	if after, err := file.Stat(); err != nil || after.Size() != info.Size() || !after.ModTime().Equal(info.ModTime()) {
		return nil, info, errors.New("changed while it was read")
	}
	return u, info, nil
}

// parseUsers parses user:{SCHEME}hash:uid:gid:gecos:home:shell:extra, as in Dovecot's
// passwd-file; what follows the hash may be missing. One invalid line makes the whole file
// invalid. To accept the rest would lock users out, or keep a first entry where the second was
// meant.
func parseUsers(r io.Reader, names identity.Names) (*userTable, error) {
	u := &userTable{passwords: make(map[identity.User]storedHash)}
	var errs lineErrors
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4096), maxLine)
	n := 0
	for lines.Scan() {
		n++
		line := lines.Text() // without \n, and without the \r of a Windows file
		if line == "" || line[0] == '#' {
			continue
		}
		if err := u.addLine(line, names); err != nil {
			errs.add(n, err)
		}
	}
	if errors.Is(lines.Err(), bufio.ErrTooLong) {
		errs.add(n+1, fmt.Errorf("longer than %d bytes; what follows was not read", maxLine))
	} else if err := lines.Err(); err != nil {
		return nil, err
	}
	if errs.count > 0 {
		return nil, &errs
	}
	// An editor or a full disk may leave an empty file for a moment.
	if len(u.passwords) == 0 {
		return nil, errors.New("the file has no users")
	}
	return u, nil
}

// addLine parses one line. Its errors do not quote the line.
func (u *userTable) addLine(line string, names identity.Names) error {
	fields := strings.SplitN(line, ":", 8) // extra fields may have colons
	if len(fields) < 2 {
		return errors.New("no password: a line is user:{SCHEME}hash")
	}
	name, err := names.Canonicalize(fields[0])
	if err != nil {
		return err
	}
	if _, duplicate := u.passwords[name]; duplicate {
		return errors.New("duplicate user")
	}
	if len(fields) == 8 {
		if err := checkExtraFields(fields[7]); err != nil {
			return err
		}
	}
	// Without a copy each hash would keep its whole line in memory.
	s, err := parseStoredHash(identity.NewSecret(strings.Clone(fields[1])))
	if err != nil {
		return err
	}
	u.passwords[name] = s
	u.histogram.add(s.params)
	return nil
}

// checkExtraFields refuses extra fields by which Dovecot would refuse a login. To ignore them
// would accept users that the operator has excluded. All other fields concern the backend.
func checkExtraFields(extra string) error {
	for field := range strings.FieldsSeq(extra) {
		switch name, _, _ := strings.Cut(field, "="); strings.ToLower(name) {
		case "allow_nets", "allow_real_nets", "nologin", "noauthenticate":
			return errors.New("extra field restricts who may log in, which imapgate does not do from this file")
		}
	}
	return nil
}

// lineErrors is an error that lists the invalid lines, up to maxListedErrors.
type lineErrors struct {
	count int
	text  strings.Builder // bound: maxListedErrors entries
}

func (e *lineErrors) add(line int, err error) {
	e.count++
	if e.count > maxListedErrors {
		return
	}
	if e.count > 1 {
		e.text.WriteString("; ")
	}
	fmt.Fprintf(&e.text, "line %d: %v", line, err)
}

// Error implements error.
func (e *lineErrors) Error() string {
	switch more := e.count - maxListedErrors; {
	case more == 1:
		return e.text.String() + "; and 1 more bad line"
	case more > 1:
		return fmt.Sprintf("%s; and %d more bad lines", e.text.String(), more)
	}
	return e.text.String()
}

// watch reloads the users whenever the file changes, until ctx is done. A missing or invalid
// file is logged and changes nothing else.
func (f *passwdFile) watch(ctx context.Context) {
	filewatch.Watcher{List: func() []string { return []string{f.path} }, Check: f.reloadIfChanged, Log: f.log}.Watch(ctx)
}

// reloadIfChanged reads the file only if it may have changed, because it may be large. The
// first call compares with the file that was opened at the start.
func (f *passwdFile) reloadIfChanged(changed bool) {
	if initial := f.initialInfo; initial != nil {
		f.initialInfo = nil
		info, err := os.Stat(f.path)
		changed = err != nil || !filewatch.IsUnchanged(initial, info)
	}
	if changed {
		f.reload()
	}
}

// reload reads the file and replaces the users if it is valid. It logs a repeated error only
// once.
func (f *passwdFile) reload() {
	u, _, err := f.load()
	if err != nil {
		if text := err.Error(); text != f.lastError {
			f.lastError = text
			f.log.Error("passwd-file is invalid, the previous users stay in service", zap.String("file", f.path), zap.Error(err))
		}
		return
	}
	f.lastError = ""
	f.users.Store(u)
	f.log.Info("passwd-file read", zap.String("file", f.path), zap.Int("users", len(u.passwords)))
}
