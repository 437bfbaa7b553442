package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// open opens a log at path and returns it with the lines of the ordinary log.
func open(t *testing.T, path, onFailure string) (*Log, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	return startQuick(t, newLog(testbed.WithDefaults(Config{Settings: Settings{Path: path, OnFailure: onFailure}}, "path", "first_per_minute"), zap.New(core))), logs
}

// openStuck opens a log that gives up a file whose reader has stopped sooner than a gateway's.
func openStuck(t *testing.T, cfg Config) (*Log, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	l := newLog(testbed.WithDefaults(cfg, "path", "first_per_minute"), zap.New(core))
	l.fileTimeout = time.Second / 5
	return startQuick(t, l), logs
}

// startQuick starts a log that maintains its sinks more often than a gateway's.
func startQuick(t *testing.T, l *Log) *Log {
	t.Helper()
	l.maintenance = time.Second / 50
	l, err := l.start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// lines decodes a file, each line of which must be a whole record.
func lines(t *testing.T, path string) []map[string]any {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []map[string]any
	for in := bufio.NewScanner(f); in.Scan(); {
		var members map[string]any
		if err := json.Unmarshal(in.Bytes(), &members); err != nil {
			t.Fatalf("line %d: %v: %s", len(all)+1, err, in.Text())
		}
		all = append(all, members)
	}
	return all
}

func recordRefusal(l *Log, session string) {
	c := testClient()
	c.Session = session
	_ = l.LoginRefused(c, &Login{}, event.BadCredentials)
}

func TestEveryRecordOfManyWritersReachesTheFileOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := open(t, path, "")
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			for i := range 500 {
				recordRefusal(l, fmt.Sprintf("%d-%d", w, i))
			}
		})
	}
	writers.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	seen := make(map[any]int)
	for _, r := range lines(t, path) {
		seen[r["session"]]++
	}
	if len(seen) != 4000 {
		t.Errorf("%d sessions in the log, want 4000", len(seen))
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := l.Ready(); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a closed log is ready: %v", err)
	}
}

func TestRecordReachesTheFileWithoutClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := open(t, path, "")
	recordRefusal(l, "one")
	testkit.Eventually(t, "one record", func() bool { return len(lines(t, path)) == 1 })
}

func TestFailingSinkBlocksLoginsAndLogsOnce(t *testing.T) {
	t.Parallel()
	l, logs := open(t, "/dev/full", "block")
	if err := l.LoginAccepted(testClient(), testLogin(t)); err != nil {
		t.Fatalf("the first login: %v", err)
	}
	testkit.Eventually(t, "not ready", func() bool { return l.Ready() != nil })
	if err := l.LoginAccepted(testClient(), testLogin(t)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a login while the sink fails: %v", err)
	}
	recordRefusal(l, "still noted")
	if l.LostRecords() != 0 {
		t.Errorf("%d lost while the buffer had space", l.LostRecords())
	}
	if err := l.Close(); err == nil {
		t.Error("Close reports no unwritten records")
	}
	if n := logs.FilterMessage("audit log cannot be written").Len(); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

func TestFailingSinkDropsRecordsWhenConfigured(t *testing.T) {
	t.Parallel()
	l, logs := open(t, "/dev/full", "drop")
	for range maxBufferedRecords + 7 {
		if err := l.LoginAccepted(testClient(), testLogin(t)); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "a failed write", func() bool { return logs.Len() == 1 })
	if err := l.Ready(); err != nil {
		t.Error(err)
	}
	if l.LostRecords() != 7 {
		t.Errorf("%d lost, want 7", l.LostRecords())
	}
}

// mountSmallDisk mounts a half-full file system of 64 KB. free releases the used
// half.
func mountSmallDisk(t *testing.T) (dir string, free func()) {
	t.Helper()
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("NOT TESTED, a full disk: mounting a small tmpfs needs root: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, func() {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDiskIsContinuedWhereItStopped(t *testing.T) {
	t.Parallel()
	for name, chain := range map[string]bool{"plain": false, "chained": true} {
		t.Run(name, func(t *testing.T) {
			dir, free := mountSmallDisk(t)
			path := filepath.Join(dir, "audit.log")
			core, logs := observer.New(zap.InfoLevel)
			l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: path, Chain: chain}}, "path", "first_per_minute"), zap.New(core))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			sent := 0
			testkit.Eventually(t, "the disk is full", func() bool {
				for range 10 {
					recordRefusal(l, fmt.Sprint(sent))
					sent++
				}
				return l.Ready() != nil
			})
			free()
			testkit.Eventually(t, "ready again", func() bool { return l.Ready() == nil })
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			sessionsInOrder(t, lines(t, path), sent)
			if _, err := verify(readAll(t, path)); chain && err != nil {
				t.Error(err)
			}
			if logs.FilterMessage("audit log is written again").Len() != 1 {
				t.Error("the recovery was not logged")
			}
		})
	}
}

// sessionsInOrder checks that each session from 0 on has its one record.
func sessionsInOrder(t *testing.T, got []map[string]any, sent int) {
	t.Helper()
	if len(got) > 0 && got[0]["event"] == "log_opened" {
		got = got[1:]
	}
	if len(got) != sent {
		t.Fatalf("%d records, want %d", len(got), sent)
	}
	for i, r := range got {
		if r["session"] != fmt.Sprint(i) {
			t.Fatalf("record %d is of session %v", i, r["session"])
		}
	}
}

// The partial record of a full disk is written again to the new file, and the chain
// continues there.
func TestFullFileThatIsRotatedIsContinuedInTheNewOne(t *testing.T) {
	t.Parallel()
	dir, free := mountSmallDisk(t)
	path := filepath.Join(dir, "audit.log")
	l := openChained(t, path)
	t.Cleanup(func() { _ = l.Close() })
	sent := 0
	testkit.Eventually(t, "the disk is full", func() bool {
		for range 10 {
			recordRefusal(l, fmt.Sprint(sent))
			sent++
		}
		return l.Ready() != nil
	})
	old := readAll(t, path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	free() // the waiting records may exceed the old file's space
	l.Reopen()
	testkit.Eventually(t, "ready again", func() bool { return l.Ready() == nil })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	v, err := verify(old, readAll(t, path))
	if err != nil || v.Records != sent+2 { // plus the first records of the two files
		t.Errorf("%v: %d records, want %d", err, v.Records, sent+2)
	}
}

func TestLossByAFullDiskIsReportedOnceItCanBe(t *testing.T) {
	t.Parallel()
	dir, free := mountSmallDisk(t)
	path := filepath.Join(dir, "audit.log")
	l, _ := open(t, path, "drop")
	sent := 0
	for l.LostRecords() < 3 {
		recordRefusal(l, fmt.Sprint(sent))
		sent++
		if err := l.Ready(); err != nil {
			t.Fatalf("with drop logins are blocked: %v", err)
		}
	}
	lost := l.LostRecords()
	big := filepath.Join(t.TempDir(), "big") // the small disk cannot hold 10,000 records
	if err := os.Symlink(big, path+".new"); err != nil {
		t.Fatal(err)
	}
	free()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the loss is reported", func() bool { text, _ := os.ReadFile(big); return bytes.Contains(text, []byte("records_lost")) })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	got := lines(t, big)
	if last := got[len(got)-1]; last["event"] != "records_lost" || last["lost"] != float64(lost) {
		t.Errorf("the last record is %v, and %d were lost", last, lost)
	}
}

// TestMain lets a test start a process that it can kill.
func TestMain(m *testing.M) {
	if path := os.Getenv("AUDIT_TEST_WRITE"); path != "" {
		l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: path, Chain: true}}, "path", "first_per_minute"), zap.NewNop())
		for err == nil {
			recordRefusal(l, "again and again")
			for l.Ready() != nil { // the file is slower than the loop
				runtime.Gosched()
			}
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestKilledProcessLeavesAtMostOnePartialLine(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	for round := range 5 {
		size := int64(0)
		if s, err := os.Stat(path); err == nil {
			size = s.Size()
		}
		writer := exec.Command(os.Args[0])
		writer.Env = append(os.Environ(), "AUDIT_TEST_WRITE="+path)
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "it writes", func() bool { s, err := os.Stat(path); return err == nil && s.Size() > size+100_000 })
		_ = writer.Process.Kill() // SIGKILL
		_ = writer.Wait()
		v, err := verify(readAll(t, path))
		if err != nil || v.PartialLines > round+1 || v.Records < 100 {
			t.Fatalf("after %d kills: %v, %d records, %d torn lines", round+1, err, v.Records, v.PartialLines)
		}
	}
}

func TestStoppedReaderBlocksLoginsAndLossIsReported(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	fifo, out := filepath.Join(dir, "fifo"), filepath.Join(dir, "out")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	reader := exec.Command("sh", "-c", `exec cat "$0" > "$1"`, fifo, out)
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reader.Process.Kill(); _ = reader.Wait() })
	var l *Log
	testkit.Eventually(t, "the reader has the FIFO open", func() bool {
		var err error
		l, err = Open(testbed.WithDefaults(Config{Settings: Settings{Path: fifo}}, "path", "first_per_minute"), zap.NewNop())
		return err == nil
	})
	recordRefusal(l, "first")
	testkit.Eventually(t, "the reader reads", func() bool { s, err := os.Stat(out); return err == nil && s.Size() > 0 })
	if err := reader.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	sent := 1
	for l.Ready() == nil {
		recordRefusal(l, "filling")
		sent++
	}
	if sent > maxBufferedRecords {
		t.Errorf("logins stop after %d records only", sent)
	}
	for l.LostRecords() < 5 {
		recordRefusal(l, "over")
		sent++
	}
	if err := reader.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "ready again", func() bool { return l.Ready() == nil })
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := reader.Wait(); err != nil {
		t.Fatal(err)
	}
	got := lines(t, out)
	if len(got) != sent-5+1 {
		t.Errorf("%d records, want %d and one of the loss", len(got), sent-5)
	}
	if last := got[len(got)-1]; last["event"] != "records_lost" || last["lost"] != 5.0 {
		t.Errorf("the last record is %v", last)
	}
}

func TestStoppedReaderDoesNotBlockClose(t *testing.T) {
	t.Parallel()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: fifo}}, "path", "first_per_minute"), zap.NewNop()); err == nil {
		t.Fatal("a FIFO without a reader was opened")
	}
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	l, _ := openStuck(t, Config{Settings: Settings{Path: fifo, OnFailure: "block"}})
	for range 1000 {
		recordRefusal(l, "unread")
	}
	if err := l.Close(); err == nil { // it returns although no process reads
		t.Error("Close reports no unwritten records")
	}
}

func TestRotatedFileIsLeftForTheNewOne(t *testing.T) {
	t.Parallel()
	for name, ask := range map[string]func(*Log){"requested": (*Log).Reopen, "noticed": func(*Log) {}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "audit.log")
			l, _ := open(t, path, "")
			recordRefusal(l, "before")
			testkit.Eventually(t, "written", func() bool { return len(lines(t, path)) == 1 })
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			ask(l)
			testkit.Eventually(t, "a new file", func() bool { _, err := os.Stat(path); return err == nil })
			recordRefusal(l, "after")
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if old, now := lines(t, path+".1"), lines(t, path); len(old) != 1 || len(now) != 1 || now[0]["session"] != "after" {
				t.Errorf("old %v, new %v", old, now)
			}
		})
	}
}

func TestDeletedFileIsReplacedByANewOne(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, _ := open(t, path, "")
	recordRefusal(l, "before")
	testkit.Eventually(t, "written", func() bool { return len(lines(t, path)) == 1 })
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "a new file", func() bool { _, err := os.Stat(path); return err == nil })
	recordRefusal(l, "after")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if now := lines(t, path); len(now) != 1 || now[0]["session"] != "after" {
		t.Errorf("%v", now)
	}
}

func TestRecreatedFIFOIsUsed(t *testing.T) {
	t.Parallel()
	fifo := makeStuckFIFO(t)
	l, logs := openStuck(t, Config{Settings: Settings{Path: fifo}})
	for name, step := range map[string]error{"remove": os.Remove(fifo), "make": syscall.Mkfifo(fifo, 0o600)} {
		if step != nil {
			t.Fatal(name, step)
		}
	}
	testkit.Eventually(t, "the log line that the new FIFO has no reader", func() bool { return logs.Len() == 1 })
	reader, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	got := make([]byte, maxRecordBytes)
	testkit.Eventually(t, "a record in the new one", func() bool {
		recordRefusal(l, "new")
		n, err := reader.Read(got)
		return err == nil && n > 0
	})
}

func TestUnfinishedLineOfAKilledProcessIsEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	if err := os.WriteFile(path, []byte("{\"event\":\"started\"}\n{\"event\":\"sess"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, _ := open(t, path, "")
	recordRefusal(l, "new")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var last []byte
	count := 0
	for in := bufio.NewScanner(bytes.NewReader(text)); in.Scan(); count++ {
		last = append(last[:0], in.Bytes()...)
	}
	if count != 3 || !json.Valid(last) {
		t.Errorf("%d lines: %s", count, text)
	}
}

func TestEmptyPathDisablesTheLog(t *testing.T) {
	l, _ := open(t, "", "block")
	for range 2 * maxBufferedRecords {
		if err := l.LoginAccepted(testClient(), testLogin(t)); err != nil {
			t.Fatal(err)
		}
	}
	if l.LostRecords() != 0 || len(l.writers) != 0 {
		t.Error("a record was written")
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	for path, mode := range map[string]string{t.TempDir(): "", "/nonexistent/audit.log": "", "-": "perhaps"} {
		if l, err := Open(testbed.WithDefaults(Config{Settings: Settings{Path: path, OnFailure: mode}}, "path", "first_per_minute"), zap.NewNop()); err == nil {
			t.Errorf("%s, %s was opened", path, mode)
			_ = l.Close()
		}
	}
}
