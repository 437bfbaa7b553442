package audit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// openChained opens a log with a chain at path.
func openChained(t testing.TB, path string) *Log {
	t.Helper()
	l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: path, Chain: true}}, "path", "first_per_minute"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// writeChained writes a chained file of some records and returns its text.
func writeChained(t testing.TB, path string, records int) []byte {
	t.Helper()
	l := openChained(t, path)
	for i := range records {
		recordRefusal(l, fmt.Sprint(i))
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// verify verifies texts as files, oldest first.
func verify(texts ...[]byte) (*Verifier, error) {
	var v Verifier
	for _, text := range texts {
		if err := v.VerifyFile(bytes.NewReader(text)); err != nil {
			return &v, err
		}
	}
	return &v, nil
}

func TestChainHoldsOverRestartsAndRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	writeChained(t, path, 20)
	writeChained(t, path, 20) // a restarted gateway
	l := openChained(t, path)
	recordRefusal(l, "before")
	testkit.Eventually(t, "written", func() bool { return len(lines(t, path)) == 42 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	l.Reopen()
	testkit.Eventually(t, "a new file", func() bool { _, err := os.Stat(path); return err == nil })
	recordRefusal(l, "after")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	old, now := readAll(t, path+".1"), readAll(t, path)
	v, err := verify(old, now)
	if seq, _ := v.Last(); err != nil || v.Records != 44 || v.FirstSeq != 1 || seq != 44 {
		t.Errorf("%v: %d records from %d to %d", err, v.Records, v.FirstSeq, seq)
	}
	if v, err := verify(now); err != nil || v.FirstSeq != 43 {
		t.Errorf("the new file alone: %v, from %d", err, v.FirstSeq)
	}
	if _, err := verify(now, old); err == nil {
		t.Error("files in the wrong order are accepted")
	}
	if first := lines(t, path)[0]; first["event"] != "log_opened" || first["previous"] != lines(t, path+".1")[41]["hash"] {
		t.Errorf("the new file begins with %v", first)
	}
}

func readAll(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// SIGKILL may leave a partial record.
func TestChainContinuesAfterAPartialLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	text := writeChained(t, path, 5)
	for cut := 1; cut < 200; cut++ {
		torn := text[:len(text)-cut]
		if err := os.WriteFile(path, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := verify(torn); err != nil {
			t.Fatalf("torn by %d bytes: %v", cut, err)
		}
		if _, err := verify(writeChained(t, path, 1)); err != nil {
			t.Fatalf("continued after a line torn by %d bytes: %v", cut, err)
		}
	}
}

func TestEveryChangeOfAChainIsFound(t *testing.T) {
	text := writeChained(t, filepath.Join(t.TempDir(), "audit.log"), 8)
	all := bytes.SplitAfter(bytes.TrimSuffix(text, []byte{'\n'}), []byte{'\n'})
	join := func(parts ...[][]byte) []byte {
		var b []byte
		for _, p := range parts {
			b = append(b, bytes.Join(p, nil)...)
		}
		return b
	}
	for name, c := range map[string]struct {
		text []byte
		line int
	}{
		"one removed":           {join(all[:3], all[4:]), 4},
		"first removed":         {join(all[1:]), 1},
		"one twice":             {join(all[:4], all[3:]), 5},
		"two exchanged":         {join(all[:3], [][]byte{all[4], all[3]}, all[5:]), 4},
		"a foreign one":         {join(all[:3], [][]byte{[]byte(`{"v":1,"event":"started"}` + "\n")}, all[3:]), 4},
		"a word changed":        {bytes.Replace(text, []byte(`"session":"4"`), []byte(`"session":"5"`), 1), 6},
		"a record made to junk": {join(all[:3], [][]byte{[]byte("{\"torn\n")}, all[4:]), 5},
		"number changed":        {bytes.Replace(text, []byte(`"seq":4,`), []byte(`"seq":5,`), 1), 4},
		"a long line":           {append(append([]byte(nil), text...), strings.Repeat("x", 1<<20)...), 10},
	} {
		var broken *ChainError
		if _, err := verify(c.text); !errors.As(err, &broken) || broken.Line != c.line {
			t.Errorf("%s: %v, want line %d", name, err, c.line)
		}
	}
	for i, b := range text { // any byte
		forged := bytes.Clone(text)
		forged[i] = b ^ 1
		if v, err := verify(forged); err == nil && v.PartialLines == 0 {
			t.Fatalf("byte %d changed from %q to %q, and the chain is accepted", i, b, b^1)
		}
	}
}

func TestChainBeginsInAFileThatHadNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte("{\"event\":\"started\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	writeChained(t, path, 1)
	var broken *ChainError
	if _, err := verify(readAll(t, path)); !errors.As(err, &broken) || broken.Line != 1 {
		t.Errorf("records without a hash are accepted: %v", err)
	}
	if got := lines(t, path); len(got) != 3 || got[1]["event"] != "log_opened" || got[1]["seq"] != 1.0 {
		t.Errorf("%v", got)
	}
}

// FuzzVerify checks that the verifier does not panic, and that an accepted chain has
// every number from the first to the last.
func FuzzVerify(f *testing.F) {
	var c chain
	text := c.appendRecords(nil, []byte("{\"v\":1,\"event\":\"log_opened\"}\n{\"event\":\"started\"}\n{\"event\":\"stopped\"}\n"))
	f.Add(text)
	f.Add(text[:len(text)-30])
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := verify(text)
		if seq, _ := v.Last(); err == nil && v.Records > 0 && seq != v.FirstSeq+uint64(v.Records)-1 {
			t.Fatalf("%d records from %d to %d", v.Records, v.FirstSeq, seq)
		}
	})
}

// A gateway starts while another drains: both write, and the file is rotated
// at the same time.
func TestChainMayHaveSeveralWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	writers := []*Log{openChained(t, path), openChained(t, path)}
	for file := range 4 {
		var all sync.WaitGroup
		for _, l := range writers {
			all.Go(func() {
				for i := range 50 {
					recordRefusal(l, fmt.Sprint(i))
					if i%10 == 0 {
						testkit.Eventually(t, "some to be written", func() bool { return l.Sinks()[0].WrittenRecords >= uint64(50*file+i) })
					}
				}
			})
		}
		if file < 3 {
			testkit.Eventually(t, "a file", func() bool { _, err := os.Stat(path); return err == nil })
			if err := os.Rename(path, fmt.Sprintf("%s.%d", path, file)); err != nil {
				t.Fatal(err)
			}
			writers[file%2].Reopen()
		}
		all.Wait()
	}
	for _, l := range writers {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var texts [][]byte
	for file := range 3 {
		texts = append(texts, readAll(t, fmt.Sprintf("%s.%d", path, file)))
	}
	texts = append(texts, readAll(t, path))
	v, err := verify(texts...)
	refused := bytes.Count(bytes.Join(texts, nil), []byte(`"event":"login_refused"`))
	if err != nil || v.PartialLines > 0 || refused != 400 {
		t.Errorf("%v: %d torn, %d refusals", err, v.PartialLines, refused)
	}
}

func TestTamperingDuringWritesIsFound(t *testing.T) {
	for name, change := range map[string]func(text []byte) []byte{
		"the last removed": func(text []byte) []byte { return text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1] },
		"cut off":          func([]byte) []byte { return nil },
		"a foreign one":    func(text []byte) []byte { return append(text, "{\"v\":1,\"event\":\"started\"}\n"...) },
		"one twice": func(text []byte) []byte {
			return append(text, text[bytes.LastIndexByte(text[:len(text)-1], '\n')+1:]...)
		},
		"as long, and another": func(text []byte) []byte {
			return bytes.Replace(text, []byte(`"session":"3"`), []byte(`"session":"4"`), 1)
		},
		"a forged one":       func(text []byte) []byte { return forgeRecord(t, text) },
		"a chain of its own": func([]byte) []byte { return writeChained(t, filepath.Join(t.TempDir(), "other.log"), 60) },
		"the last made another": func(text []byte) []byte {
			return bytes.Replace(text, []byte(`"session":"4"`), []byte(`"session":"44"`), 1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l := openChained(t, path)
			for i := range 5 {
				recordRefusal(l, fmt.Sprint(i))
			}
			testkit.Eventually(t, "written", func() bool { return l.Sinks()[0].WrittenRecords == 5 })
			before := readAll(t, path)
			if err := os.WriteFile(path, change(bytes.Clone(before)), 0o600); err != nil {
				t.Fatal(err)
			}
			recordRefusal(l, "after it")
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if v, err := verify(readAll(t, path)); err == nil {
				t.Errorf("%d records, and the chain is accepted", v.Records)
			}
		})
	}
}

// forgeRecord appends a record with a valid hash to a chain.
func forgeRecord(t testing.TB, text []byte) []byte {
	t.Helper()
	var c chain
	if !c.restoreFrom(bytes.TrimSuffix(text, []byte{'\n'})) {
		t.Fatal("no chain")
	}
	return c.appendRecords(text, []byte("{\"v\":1,\"event\":\"login_accepted\"}\n"))
}

// A process that was killed during a write leaves a partial record to the others.
func TestWriterEndsThePartialLineOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l := openChained(t, path)
	recordRefusal(l, "one")
	testkit.Eventually(t, "written", func() bool { return l.Sinks()[0].WrittenRecords == 1 })
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"v":1,"event":"log`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	recordRefusal(l, "two")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err := verify(readAll(t, path)); err != nil || v.Records != 3 || v.PartialLines != 1 {
		t.Errorf("%v: %d records, %d torn", err, v.Records, v.PartialLines)
	}
}

// A process that was stopped while it held the lock does not block logins.
func TestLockedChainIsStillWritten(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := openStuck(t, Config{Settings: Settings{Path: path, Chain: true}})
	stopped, err := openChainLock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer stopped.file.Close()
	if !stopped.acquire(testbed.Timeout) {
		t.Fatal("not locked")
	}
	for range 3 {
		recordRefusal(l, "one")
	}
	testkit.Eventually(t, "written", func() bool { return l.Sinks()[0].WrittenRecords == 3 })
	recordRefusal(l, "two")
	testkit.Eventually(t, "written", func() bool { return l.Sinks()[0].WrittenRecords == 4 })
	stopped.release()
	recordRefusal(l, "three")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err := verify(readAll(t, path)); err != nil || v.Records != 6 {
		t.Errorf("%v: %d records", err, v.Records)
	}
}

// Writers do not lock the log itself: every reader could hold that lock.
func TestReadersOfTheLogCannotBlockWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	writeChained(t, path, 1)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := flock(f, syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	l := openChained(t, path)
	recordRefusal(l, "one")
	testkit.Eventually(t, "written", func() bool { return l.Sinks()[0].WrittenRecords == 1 })
	if l.writers[0].sink.(*file).chainLock == nil {
		t.Error("there is no lock file")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(chainLockPath(path)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the lock file: %v, %v", info, err)
	}
}

// A gateway continues in the new file after the records that another wrote to the
// old one.
func TestChainContinuesWhenTheFileMovesBeforeASecondWriterOpens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	old := openChained(t, path)
	recordRefusal(old, "one")
	testkit.Eventually(t, "written", func() bool { return old.Sinks()[0].WrittenRecords == 1 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	next := openChained(t, path)
	recordRefusal(next, "two")
	testkit.Eventually(t, "written", func() bool { return next.Sinks()[0].WrittenRecords == 1 })
	recordRefusal(old, "three")
	for _, l := range []*Log{old, next} {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if v, err := verify(readAll(t, path+".1"), readAll(t, path)); err != nil || v.Records != 5 {
		t.Errorf("%v: %d records", err, v.Records)
	}
}
