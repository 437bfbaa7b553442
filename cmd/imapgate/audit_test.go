package main

import (
	"bytes"
	"compress/gzip"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// runCommand runs a command and returns its output and status.
func runCommand(t *testing.T, stdin string, args ...string) (out, errs string, status int) {
	t.Helper()
	root := newRoot()
	var stdout, stderr bytes.Buffer
	root.SetArgs(args)
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	status = run(t.Context(), root)
	return stdout.String(), stderr.String(), status
}

// writeAuditLog writes a chained audit log of some events in three files and returns
// them, newest first. The oldest is compressed.
func writeAuditLog(t *testing.T) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := audit.Open(testbed.WithDefaults(audit.Config{Settings: audit.Settings{Path: path, Chain: true}}, "path", "first_per_minute"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	alice := testkit.Must(identity.Canonicalize("alice@example.org", ""))(t)
	c := &audit.Client{Session: "s1", Peer: netip.MustParseAddrPort("10.0.0.9:4711"), Addr: netip.MustParseAddrPort("[2001:db8::7]:500")}
	_ = l.LoginRefused(c, &audit.Login{ClaimedName: "Al ice"}, event.BadName)
	rotate(t, l, path, path+".2")
	_ = l.LoginAccepted(c, &audit.Login{User: alice, Backend: "east", RouteSource: "cache", Mechanism: "LOGIN"})
	rotate(t, l, path, path+".1")
	_ = l.SessionEnded(c, &audit.Session{User: alice, Backend: "east", BytesIn: 1, BytesOut: 2}, event.ClientLogout)
	_ = l.BanAdded(&audit.Ban{Subject: "192.0.2.0/24", Reason: event.BanOperator, Operator: "carol"})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	compress(t, path+".2")
	return []string{path, path + ".1", path + ".2.gz"}
}

// rotate renames a file after the log has written everything, as logrotate does.
func rotate(t *testing.T, l *audit.Log, path, to string) {
	t.Helper()
	before := l.Sinks()[0].WrittenRecords
	testkit.Eventually(t, "the records are written", func() bool {
		s := l.Sinks()[0]
		return s.WrittenRecords > 0 && s.WrittenRecords >= before && fileHas(path)
	})
	if err := os.Rename(path, to); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	testkit.Eventually(t, "a new file", func() bool { _, err := os.Stat(path); return err == nil })
}

func fileHas(path string) bool {
	s, err := os.Stat(path)
	return err == nil && s.Size() > 0
}

func compress(t *testing.T, path string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(text) // to memory
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".gz", b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestAuditGrepFindsMatchingRecords(t *testing.T) {
	files := writeAuditLog(t)
	for query, want := range map[string][]string{
		"":                         {"log opened", "login refused", "log opened", "login accepted", "log opened", "session ended", "ban added"},
		"--user alice@example.org": {"login accepted", "session ended"},
		"--user=al\u0020ice":       {"login refused"},
		"--address 2001:db8::/32":  {"login refused", "login accepted", "session ended"},
		"--address 10.0.0.9":       {"login refused", "login accepted", "session ended"},
		"--address 192.0.2.77":     {"ban added"},
		"--session s1 --event login_accepted,session_ended": {"login accepted", "session ended"},
		"--result refused": {"login refused"},
		"--since 1h --event ban_added --until 2999-01-01": {"ban added"},
		"--since 2999-01-01":                              nil,
		"--until 2w":                                      nil,
		"--until 1d":                                      nil,
	} {
		args := append([]string{"audit", "grep"}, files...)
		if user, ok := strings.CutPrefix(query, "--user="); ok {
			args = append(args, "--user", user)
		} else {
			args = append(args, strings.Fields(query)...)
		}
		out, errs, status := runCommand(t, "", args...)
		got := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if want == nil {
			if out != "" || status != 1 {
				t.Errorf("%s: %d, %q", query, status, out)
			}
			continue
		}
		if status != 0 || errs != "" || len(got) != len(want) {
			t.Errorf("%s: %d, %q, %q", query, status, errs, out)
			continue
		}
		for i, l := range got {
			if strings.Index(l, want[i]) != len("2006-01-02 15:04:05  ") {
				t.Errorf("%s: line %d is %q, want %s", query, i, l, want[i])
			}
		}
	}
}

func TestAuditGrepReadsStandardInputAndPrintsRecordsUnchanged(t *testing.T) {
	record := `{"v":1,"time":"2026-05-01T12:00:00.000Z","event":"login_refused","claimed":"a\u001b[2Jb","result":"refused","reason":"bad_name","new":1}`
	in := "not a record\n" + strings.Repeat("x", 100_000) + "\n" + record + "\n" + record[:40]
	out, errs, status := runCommand(t, in, "audit", "grep", "--json")
	if status != 0 || out != record+"\n" || errs != "skipped 3 lines without a record\n" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
	out, _, _ = runCommand(t, in, "audit", "grep", "-")
	if strings.Contains(out, "\x1b") || !strings.Contains(out, `"a\x1b[2Jb"`) {
		t.Errorf("a terminal would get %q", out)
	}
}

func TestAuditGrepReadsAStreamOfRedis(t *testing.T) {
	record := `{"v":1,"time":"2026-05-01T12:00:00.000Z","event":"ban_added","subject":"192.0.2.1/32"}`
	in := strings.Repeat("1777636800000-0\nrecord\n"+record+"\n", 3)
	if out, errs, status := runCommand(t, in+"1777636800000\n", "audit", "grep", "--json"); status != 0 || out != strings.Repeat(record+"\n", 3) || errs != "skipped 1 line without a record\n" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
}

func TestAuditGrepReportsBadFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--event", "login"}, {"--result", "fine"}, {"--address", "example.org"}, {"--since", "yesterday"}, {"/nonexistent/audit.log"},
	} {
		if _, errs, status := runCommand(t, "", append([]string{"audit", "grep"}, args...)...); status != 1 || !strings.Contains(errs, args[len(args)-1]) {
			t.Errorf("%q: %d, %q", args, status, errs)
		}
	}
}

func TestAuditVerifyReportsTheFirstBadLine(t *testing.T) {
	files := writeAuditLog(t)
	out, errs, status := runCommand(t, "", append([]string{"audit", "verify"}, files...)...)
	if status != 0 || errs != "" || !strings.HasPrefix(out, "OK: records 1 to 7; the last has the hash ") {
		t.Fatalf("%d, %q, %q", status, out, errs)
	}
	if out, _, status := runCommand(t, "", "audit", "verify", files[0], files[2]); status != 1 || !strings.HasPrefix(out, files[0]+":1: ") {
		t.Errorf("a file is missing: %d, %q", status, out)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files[0], bytes.Replace(text, []byte(`"bytes_in":1`), []byte(`"bytes_in":2`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, status := runCommand(t, "", append([]string{"audit", "verify"}, files...)...); status != 1 || !strings.HasPrefix(out, files[0]+":2: has a wrong hash") {
		t.Errorf("%d, %q", status, out)
	}
	if _, errs, status := runCommand(t, "", "audit", "verify"); status != 1 || !strings.Contains(errs, "at least one file is needed: imapgate audit verify FILE...") {
		t.Errorf("without a file: %d, %q", status, errs)
	}
	if out, _, status := runCommand(t, "torn", "audit", "verify", "-"); status != 1 || out != "no chained records found\n" {
		t.Errorf("%d, %q", status, out)
	}
}

func TestColumnsAreAlignedWithColoursToo(t *testing.T) {
	l := &auditRecord{Time: time.Now(), Event: "login_accepted", User: "alice@example.org", Peer: "192.0.2.1:5", Backend: "east", Result: "accepted"}
	plain, coloured := recordFormat{timeLayout: time.TimeOnly}.format(l), recordFormat{timeLayout: time.TimeOnly, useColour: true}.format(l)
	for _, code := range []string{dim, green, resetColour} {
		if !strings.Contains(coloured, code) {
			t.Errorf("no %q in %q", code, coloured)
		}
		coloured = strings.ReplaceAll(coloured, code, "")
	}
	if coloured != plain {
		t.Errorf("%q, without colours %q", coloured, plain)
	}
	long := *l
	long.User = "a.very.long.name@example.org"
	if got := (recordFormat{}).format(&long); !strings.Contains(got, long.User+"  192.0.2.1:5") {
		t.Errorf("%q", got)
	}
	if supportsColour(&bytes.Buffer{}) {
		t.Error("a buffer counts as a terminal")
	}
}

func TestClockStepDoesNotReorderAChain(t *testing.T) {
	older := write(t, "audit.log.1", `{"v":1,"time":"2026-05-01T12:00:00.000Z","event":"started","seq":1}`+"\n")
	newer := write(t, "audit.log", `{"v":1,"time":"2026-05-01T11:00:00.000Z","event":"log_opened","seq":2}`+"\n")
	files, err := openAuditFiles([]string{newer, older}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAuditFiles(files)
	if files[0].name != newer {
		t.Errorf("%s is read first, although records are sorted by time", files[0].name)
	}
	if sortByChain(files); files[0].name != older {
		t.Errorf("%s comes first in the chain", files[0].name)
	}
}
