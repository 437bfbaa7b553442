package auth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func TestPasswdFileIsReadAsDovecotReadsIt(t *testing.T) {
	u, err := parseUsers(strings.NewReader(strings.Join([]string{
		"# a comment with user:{PLAIN}x",
		"",
		"alice:{PLAIN}one",
		"Bob@Example.NET:" + cheapSHA + ":1000:1000:Bob, the builder:/home/bob:/bin/sh:userdb_mail=sdbox:~/mail userdb_quota_rule=*:storage=1G\r",
		"carol@example.net:{PLAIN}p a#s s::::::",
		"dave@example.org:" + cheapBcrypt + ":",
		"last:{PLAIN}no newline",
	}, "\n")), identity.NamesInDomain("example.org"))
	if err != nil {
		t.Fatal(err)
	}
	for name, password := range map[string]string{
		"alice@example.org": "one", "bob@example.net": "x", "carol@example.net": "p a#s s", "dave@example.org": "pässwörd", "last@example.org": "no newline",
	} {
		c := testkit.Must(identity.Canonicalize(name, ""))(t)
		if s, ok := u.passwords[c]; !ok || !s.matches(secret(password)) {
			t.Errorf("%s is missing or has another password", name)
		}
	}
	if len(u.passwords) != 5 {
		t.Errorf("%d users", len(u.passwords))
	}
}

func TestOneBadLineRefusesTheFileAndAllAreListedWithoutContents(t *testing.T) {
	const canary = "hunter2"
	_, err := parseUsers(strings.NewReader(strings.Join([]string{
		"alice:{PLAIN}fine",
		canary,
		":{PLAIN}" + canary,
		canary + " space:{PLAIN}x",
		"bob:",
		"carol:" + canary,
		"dave:{" + canary + "}x",
		"ALICE@example.org:{PLAIN}" + canary,
		"erin:$argon2id$v=19$m=4194304,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + decoyKey,
		"frank:{PLAIN}" + canary + "::::::allow_nets=10.0.0.0/8",
		"grace:{PLAIN}" + canary + "::::::userdb_x=y NoLogin",
	}, "\n")), identity.NamesInDomain("example.org"))
	if err == nil {
		t.Fatal("a bad file is accepted")
	}
	for n := 2; n <= 11; n++ {
		if !strings.Contains(err.Error(), fmt.Sprintf("line %d: ", n)) {
			t.Errorf("line %d is not named", n)
		}
	}
	for _, word := range []string{canary, "line 1:", "alice", "frank", "10.0.0"} {
		if strings.Contains(err.Error(), word) {
			t.Errorf("%q in %v", word, err)
		}
	}
	if !strings.Contains(err.Error(), "memory of the password hash is not between 8 and 262144") {
		t.Errorf("the cost is not explained: %v", err)
	}
}

func TestErrorsAndLinesAreBounded(t *testing.T) {
	_, err := parseUsers(strings.NewReader(strings.Repeat("bad line\n", 10_000)), identity.Names{})
	if err == nil || !strings.Contains(err.Error(), "and 9950 more bad lines") || len(err.Error()) > 10_000 {
		t.Errorf("%v", err)
	}
	_, err = parseUsers(strings.NewReader("a:{PLAIN}a\nb:{PLAIN}"+strings.Repeat("b", 2*maxLine)+"\nc:{PLAIN}c\n"), identity.Names{})
	if err == nil || !strings.Contains(err.Error(), "line 2: longer than") {
		t.Errorf("%v", err)
	}
	for _, empty := range []string{"", "\n\n", "# no users\n"} {
		if _, err := parseUsers(strings.NewReader(empty), identity.Names{}); err == nil {
			t.Errorf("%q is accepted", empty)
		}
	}
}

func TestTooLargeOrIrregularFileIsRefusedUnread(t *testing.T) {
	path := writeFile(t, "alice:{PLAIN}x\n")
	if err := os.Truncate(path, maxFileSize+1); err != nil { // sparse
		t.Fatal(err)
	}
	if _, err := openPasswdFile(path, identity.Names{}, zap.NewNop()); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Errorf("%v", err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openPasswdFile(fifo, identity.Names{}, zap.NewNop()); err == nil {
		t.Error("a FIFO is accepted")
	}
}

func TestManyUsersAreReadAndAllAreCounted(t *testing.T) {
	const users = 100_000
	var b strings.Builder
	for i := range users {
		hash := cheapSHA
		if i < users/2-1 || i == users-1 {
			hash = cheapBcrypt // fewer, by one, but at both ends
		}
		fmt.Fprintf(&b, "user%d:%s\n", i, hash)
	}
	u, err := parseUsers(strings.NewReader(b.String()), identity.NamesInDomain("example.org"))
	if err != nil || len(u.passwords) != users {
		t.Fatalf("%v", err)
	}
	if n := u.histogram.counts[u.histogram.mostFrequent()]; n != users/2 && n != users/2+1 {
		t.Errorf("the histogram has %d", n)
	}
}

// channelCore sends every log entry to the test, so that a test knows when a file has been
// read.
type channelCore struct {
	zapcore.Core
	entries chan string // bound: 64 entries, more than a test causes
}

func newChannelLog() (*zap.Logger, chan string) {
	n := channelCore{zapcore.NewNopCore(), make(chan string, 64)}
	return zap.New(n), n.entries
}

func (n channelCore) Enabled(zapcore.Level) bool        { return true }
func (n channelCore) With([]zapcore.Field) zapcore.Core { return n }
func (n channelCore) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, n)
}

func (n channelCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	n.entries <- fmt.Sprint(e.Message, " ", enc.Fields)
	return nil
}

// watchedAuth is an Authenticator that watches its file while the test runs.
type watchedAuth struct {
	*testing.T
	a       *Authenticator
	path    string
	entries chan string
}

func watchFile(t *testing.T, path string) *watchedAuth {
	log, entries := newChannelLog()
	a, err := New(Config{Settings: Settings{Methods: []string{File}, NameRules: identity.NamesInDomain("example.org"), File: FileSettings{Path: path}}}, Sources{}, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return &watchedAuth{t, a, path, entries}
}

// waitForLog waits for a log line that starts with text. Changes made before the watch begins
// are found too: Watch begins with a check.
func (f *watchedAuth) waitForLog(text string) string {
	f.Helper()
	deadline := time.After(testbed.Timeout)
	for {
		select {
		case e := <-f.entries:
			if strings.Contains(e, "hunter2") || strings.Contains(e, "$6$") {
				f.Errorf("a secret in the log: %s", e)
			}
			if strings.HasPrefix(e, text) {
				return e
			}
		case <-deadline:
			f.Fatalf("%q was not logged", text)
		}
	}
}

func (f *watchedAuth) write(content string) {
	f.Helper()
	if err := os.WriteFile(f.path, []byte(content), 0o600); err != nil {
		f.Fatal(err)
	}
}

// replace writes the file in one step: no reader sees it empty in between.
func (f *watchedAuth) replace(content string) {
	f.Helper()
	next := f.path + ".new"
	if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Rename(next, f.path); err != nil {
		f.Fatal(err)
	}
}

// expectLogin logs in; an empty method means denied.
func (f *watchedAuth) expectLogin(user, password, method string) {
	f.Helper()
	id, err := logIn(f.T, f.a, user, password)
	if method == "" && !errors.Is(err, ErrDenied) || id.Method() != method {
		f.Errorf("%s: %v, %v", user, id, err)
	}
}

func TestPasswdFileIsReloaded(t *testing.T) {
	f := watchFile(t, writeFile(t, "alice:{PLAIN}one\n"))
	f.expectLogin("alice", "one", File)

	f.write("alice:{PLAIN}two\nbob:{PLAIN}x\n")
	f.waitForLog("passwd-file read map[file:" + f.path + " users:2]")
	f.expectLogin("alice", "one", "")
	f.expectLogin("alice", "two", File)

	f.replace("carol:{PLAIN}x\n")
	f.waitForLog("passwd-file read map[file:" + f.path + " users:1]")
	f.expectLogin("bob", "x", "")
	f.expectLogin("carol", "x", File)

	if err := os.Remove(f.path); err != nil {
		t.Fatal(err)
	}
	f.waitForLog("passwd-file is invalid")
	f.expectLogin("carol", "x", File)

	f.write("dave:{PLAIN}x\n")
	f.waitForLog("passwd-file read")
	f.expectLogin("carol", "x", "")
	f.expectLogin("dave", "x", File)
}

func TestBadFileKeepsUsersAndListsBadLines(t *testing.T) {
	f := watchFile(t, writeFile(t, "alice:{PLAIN}one\n"))
	f.replace("alice:{PLAIN}two\nbob:hunter2\n\nhunter2\n")
	e := f.waitForLog("passwd-file is invalid, the previous users stay in service")
	if !strings.Contains(e, "line 2: ") || !strings.Contains(e, "line 4: ") {
		t.Errorf("%s", e)
	}
	f.expectLogin("alice", "one", File)
	f.expectLogin("alice", "two", "")

	f.replace("")
	f.waitForLog("passwd-file is invalid")
	f.expectLogin("alice", "one", File)

	f.write("alice:{PLAIN}three\n")
	f.waitForLog("passwd-file read")
	f.expectLogin("alice", "three", File)

	f.write("")
	f.waitForLog("passwd-file is invalid") // the same error after a good file is logged again
	if err := os.Truncate(f.path, maxFileSize+1); err != nil {
		t.Fatal(err)
	}
	if e := f.waitForLog("passwd-file is invalid"); !strings.Contains(e, "larger than") {
		t.Errorf("%s", e)
	}
	f.expectLogin("alice", "three", File)
}

// A mounted Kubernetes secret: users -> ..data/users, ..data -> a versioned
// directory. An update replaces ..data and leaves "users" unchanged.
func TestFileIsReloadedWhenSymlinkChanges(t *testing.T) {
	dir := t.TempDir()
	publish := func(version, content string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, version, "users"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(version, filepath.Join(dir, "..new")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..new"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	publish("v1", "alice:{PLAIN}one\n")
	if err := os.Symlink("..data/users", filepath.Join(dir, "users")); err != nil {
		t.Fatal(err)
	}
	f := watchFile(t, filepath.Join(dir, "users"))
	f.expectLogin("alice", "one", File)
	publish("v2", "alice:{PLAIN}two\n")
	f.waitForLog("passwd-file read")
	f.expectLogin("alice", "two", File)
}

func TestRunWithoutAFileWaitsForTheEnd(t *testing.T) {
	a := newPassthroughAuth(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- a.Run(ctx) }()
	select {
	case <-ended:
		t.Error("Run returned before ctx was done")
	default:
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func FuzzPasswdFile(f *testing.F) {
	f.Add("alice:{PLAIN}x\n# c\nbob:"+cheapSHA+":::::\n", "example.org")
	f.Add("a:$2y$05$93zmq0Sridcr3J8KaxX/0.24XR2yNiEf9f7IwJsme1jFWwnVkV/iS\n", "")
	f.Add("a:$argon2id$v=19$m=65536,t=3,p=1$AAAAAAAAAAAAAAAAAAAAAA$"+decoyKey, "")
	f.Add("a:{PBKDF2}$1$AAAA$1$0000000000000000000000000000000000000000\n", "")
	f.Fuzz(func(t *testing.T, content, domain string) {
		u, err := parseUsers(strings.NewReader(content), identity.NamesInDomain(domain))
		if err != nil {
			if u != nil {
				t.Fatal("users together with an error")
			}
			return
		}
		for name, s := range u.passwords {
			if again, err := identity.Canonicalize(name.String(), domain); err != nil || again != name {
				t.Fatalf("%q is not canonical", name)
			}
			if again, err := parseStoredHash(secret("{" + s.params.scheme.name + "}" + s.hash.Reveal())); err != nil || again != s {
				t.Fatalf("%q of %s does not parse again: %v", s.hash.Reveal(), name, err)
			}
			for i, c := range s.params.scheme.costs {
				if n := s.params.costs[i]; n < c.min || n > c.max {
					t.Fatalf("%s is %d", c.name, n)
				}
			}
			d := s.params.newDecoy()
			if again, err := parseStoredHash(secret("{" + d.params.scheme.name + "}" + d.hash.Reveal())); err != nil || again.params != s.params {
				t.Fatalf("decoy %q: %v", d.hash.Reveal(), err)
			}
		}
	})
}

func TestAPasswdFileWrittenOnWindowsIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	open := func(text string) (*passwdFile, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return openPasswdFile(path, identity.Names{}, zap.NewNop())
	}
	f, err := open("\xef\xbb\xbfalice:{PLAIN}a\r\nbob:{PLAIN}b\r\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"alice", "bob"} {
		u := testkit.Must(identity.Canonicalize(name, ""))(t)
		if _, err := f.lookUp(t.Context(), u); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := open("\xff\xfea\x00"); err == nil || !strings.Contains(err.Error(), "it is written in UTF-16; save it as UTF-8") {
		t.Errorf("%v", err)
	}
}
