package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/testkit"
	"imapgate/tlsconf"
)

// runMainVariable in the environment makes the test binary behave as imapgate, so
// that tests can send signals to another process.
const runMainVariable = "IMAPGATE_TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMainVariable) != "" {
		main()
	}
	os.Exit(m.Run())
}

// testTimeout bounds the wait for the effects of a process; race builds are slow.
const testTimeout = 30 * time.Second

// outputBuffer receives the output of a command while a test reads it.
type outputBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // Guarded by mu.
}

func (s *outputBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *outputBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// awaitMatch waits for a match of a pattern and returns its groups.
func (s *outputBuffer) awaitMatch(t testing.TB, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	testkit.Eventually(t, pattern, func() bool {
		found = re.FindStringSubmatch(s.String())
		return found != nil
	}, s.String)
	return found
}

// commandResult is the result of a command.
type commandResult struct {
	status   int
	out, err string
}

// imapgate runs a command in this process.
func imapgate(t testing.TB, stdin string, args ...string) commandResult {
	t.Helper()
	root := newRoot()
	var out, errs bytes.Buffer
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errs)
	return commandResult{run(t.Context(), root), out.String(), errs.String()}
}

// write writes a file to a new directory of the test.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate returns the files of a certificate for loopback.
func certificate(t testing.TB) (cert, key string) {
	t.Helper()
	c, k, err := tlsconf.SelfSignedPEM("localhost", loopback)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "cert.pem", string(c)), write(t, "key.pem", string(k))
}

func TestAnUnknownFlagNamesTheHelp(t *testing.T) {
	if got := imapgate(t, "", "ban", "add", "--colour"); got.status != exitUsage || !strings.Contains(got.err, "see imapgate ban add --help") {
		t.Errorf("%+v", got)
	}
}

func TestVersionIdentifiesTheBuild(t *testing.T) {
	if got := imapgate(t, "", "version"); got.status != 0 || !strings.HasPrefix(got.out, "imapgate ") {
		t.Errorf("%+v", got)
	}
	version, flag := imapgate(t, "", "version"), imapgate(t, "", "--version")
	if version != flag {
		t.Errorf("%+v, but --version prints %+v", version, flag)
	}
	var b buildInfo
	if got := imapgate(t, "", "version", "--json"); json.Unmarshal([]byte(got.out), &b) != nil || b.Version == "" || b.Go == "" {
		t.Errorf("%+v", got)
	}
}

func TestEveryCommandHasHelpWithAnExample(t *testing.T) {
	root := newRoot()
	for _, cmd := range append(root.Commands(), newRoute().Commands()...) {
		if cmd.Short == "" || cmd.Example == "" && !cmd.HasSubCommands() {
			t.Errorf("%s has no help", cmd.Name())
		}
		if got := imapgate(t, "", "help", cmd.Name()); got.status != 0 || got.out == "" {
			t.Errorf("help %s: %+v", cmd.Name(), got)
		}
	}
}

func TestAnUnknownCommandIsAnError(t *testing.T) {
	if got := imapgate(t, "", "sevre"); got.status != exitUsage || !strings.Contains(got.err, "sevre") {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "", "serve", "stray"); got.status != 1 {
		t.Errorf("%+v", got)
	}
}

func TestTheConfigurationIsAnArgumentToo(t *testing.T) {
	file := write(t, "imapgate.yaml", `
listeners: [{address: "127.0.0.1:0", tls: none}]
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:1", tls: none}}
`)
	for _, args := range [][]string{{"check", file}, {"check", "--config", file}, {"check", file, "-c", file}} {
		if got := imapgate(t, "", args...); got.status != 0 || !strings.Contains(got.out, file+" is valid") {
			t.Errorf("%q: %+v", args, got)
		}
	}
	for _, command := range []string{"check", "serve"} {
		for want, args := range map[string][]string{
			"name different files": {file, "--config", file + ".old"}, "one configuration file": {file, file}, "none.yaml": {"none.yaml"},
		} {
			if got := imapgate(t, "", append([]string{command}, args...)...); got.status != 1+min(len(args)-1, 1) || !strings.Contains(got.err, want) {
				t.Errorf("%s %q: %+v", command, args, got)
			}
		}
		if got := imapgate(t, "", "__complete", command, ""); !strings.Contains(got.out, "yaml\nyml\n:8") {
			t.Errorf("%s is completed with %+v", command, got)
		}
	}
}

func TestCommandGroupRefusesUnknownCommands(t *testing.T) {
	for _, group := range []string{"ban", "limits", "route", "audit"} {
		if got := imapgate(t, "", group, "remove", "192.0.2.1"); got.status != exitUsage || got.out != "" || !strings.Contains(got.err, `unknown command "remove" for "imapgate `+group) {
			t.Errorf("%s: %+v", group, got)
		}
		if got := imapgate(t, "", group); got.status != 0 || !strings.Contains(got.out, "Available Commands") {
			t.Errorf("%s without arguments: %+v", group, got)
		}
	}
}

func TestShellsCanCompleteCommands(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := imapgate(t, "", "completion", shell); got.status != 0 || !strings.Contains(got.out, "imapgate") {
			t.Errorf("%s: status %d, %s", shell, got.status, got.err)
		}
	}
	if got := imapgate(t, "", "__complete", "passwd", "--scheme", ""); !strings.Contains(got.out, "ARGON2ID") {
		t.Errorf("schemes are not completed: %+v", got)
	}
}

func TestRunningCommandEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out outputBuffer
	if err := runDemo(ctx, demoPorts{}, console{strings.NewReader(""), &out, &out}); err != nil {
		t.Error(err)
	}
	dir := out.awaitMatch(t, `files +(\S+) `)[1]
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s still exists: %v", dir, err)
	}
}
