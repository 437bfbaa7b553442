package routing

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// checkSnapshotFile checks that a snapshot file contains has, and not hasNot.
func checkSnapshotFile(t *testing.T, path, has, hasNot string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	if !strings.Contains(string(text), has) || strings.Contains(string(text), hasNot) {
		t.Errorf("the file has no %q or has %q: %s", has, hasNot, text)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".routes-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("unfinished files are left: %v, %v", left, err)
	}
}

// routerWithSnapshot returns a Router whose Redis is down and whose snapshot is text.
func routerWithSnapshot(t *testing.T, text string) *Router {
	t.Helper()
	file := filepath.Join(t.TempDir(), "routes.json")
	writeFile(t, file, text)
	return routerWithFile(t, file, newFakeStore())
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func routerWithFile(t *testing.T, file string, o *fakeStore) *Router {
	t.Helper()
	cfg := testConfig
	cfg.Snapshot = file
	cfg = testbed.WithDefaults(cfg)
	r := &Router{cfg: cfg, log: testLogger(t), keys: keys{cfg.Prefix}, rules: newRules(cfg), cache: newCache(cfg, o.reader(), testLogger(t))}
	o.fail(errUnreachable, 0)
	r.loadSnapshot()
	return r
}

func TestAnInvalidSnapshotIsIgnored(t *testing.T) {
	for name, text := range map[string]string{
		"empty":           "",
		"not JSON":        "\x00\x01\x02",
		"cut off":         `{"version":1,"routes":[{"user":"alice","backend":"east","source":"user","learned":"2026-01`,
		"another version": `{"version":2,"routes":[{"user":"alice","backend":"east","source":"user"}]}`,
		"another type":    `{"version":1,"routes":{"user":"alice"}}`,
		"an array":        `[]`,
	} {
		r := routerWithSnapshot(t, text)
		if len(r.cache.entries) != 0 {
			t.Errorf("%s: %d routes were taken", name, len(r.cache.entries))
		}
		if _, err := r.Lookup(t.Context(), user(t, "alice")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSnapshotRoutesAreCheckedLikeRecords(t *testing.T) {
	now := time.Now().UTC()
	line := func(user, backend, source string, learned time.Time, more string) string {
		return fmt.Sprintf(`{"user":%q,"backend":%q,"source":%q,"learned":%q%s}`, user, backend, source, learned.Format(time.RFC3339), more)
	}
	for _, bad := range []string{
		line("alice", "gone", "user", now, ""),
		line("alice", "", "user", now, ""),
		line("ALICE", "east", "user", now, ""),
		line("a b", "east", "user", now, ""),
		line("alice", "east", "", now, ""),
		line("alice", "east", "static", now, ""),
		line("alice", "east", "user", now, `,"login":"a b"`),
		line("alice", "east", "user", now, `,"mode":"fast"`),
		line("alice", "east", "user", now.Add(-25*time.Hour), ""),
		line("alice", "east", "user", time.Time{}, ""),
	} {
		r := routerWithSnapshot(t, `{"version":1,"routes":[`+bad+`]}`)
		if got, err := r.Lookup(t.Context(), user(t, "alice")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s gave %+v, %v", bad, got, err)
		}
	}
	r := routerWithSnapshot(t, `{"version":1,"routes":[`+line("alice", "east", "user", now.Add(1000*time.Hour), "")+","+
		line("bob@x", "west", "domain", now.Add(-time.Hour), `,"mode":"park"`)+`]}`)
	if got, err := r.Lookup(t.Context(), user(t, "alice")); err != nil || got.Backend != "east" || got.Age > time.Minute {
		t.Errorf("learned in the future: %+v, %v", got, err)
	}
	got, err := r.Lookup(t.Context(), user(t, "bob@x"))
	if err != nil || got.Backend != "west" || got.Mode != "park" || got.Key != "imapgate:domain:x" ||
		got.Origin != event.OriginSnapshot || got.Age < time.Hour-time.Second || got.Age > time.Hour+time.Minute {
		t.Errorf("learned an hour ago: %+v, %v", got, err)
	}
}

func TestASnapshotPreservesAges(t *testing.T) {
	file := filepath.Join(t.TempDir(), "routes.json")
	synctest.Test(t, func(t *testing.T) {
		o := newFakeStore()
		r := routerWithFile(t, file, o)
		o.fail(nil, 0)
		alice := user(t, "alice")
		o.set(alice, MatchUser, "east")
		for range 3 { // each process learns nothing new
			if _, err := r.Lookup(t.Context(), alice); err != nil {
				t.Fatal(err)
			}
			advance(6 * time.Hour)
			if err := r.saveSnapshot(); err != nil {
				t.Fatal(err)
			}
			o = newFakeStore()
			r = routerWithFile(t, file, o)
		}
		got, err := r.Lookup(t.Context(), alice)
		if err != nil || got.Age != 18*time.Hour {
			t.Errorf("after 18 hours: %+v, %v", got, err)
		}
		advance(6 * time.Hour)
		if _, err := r.Lookup(t.Context(), alice); !errors.Is(err, ErrUnavailable) {
			t.Errorf("after a day: %v", err)
		}
		checkSnapshotFile(t, file, "alice", "password")
	})
}

func TestASnapshotIsWrittenOnlyWhenSomethingChanged(t *testing.T) {
	file := filepath.Join(t.TempDir(), "routes.json")
	o := newFakeStore()
	r := routerWithFile(t, file, o)
	o.fail(nil, 0)
	alice := user(t, "alice")
	lookupAndSave := func(backend string) {
		t.Helper()
		o.set(alice, MatchUser, backend)
		r.cache.invalidateUser(alice.String())
		if _, err := r.Lookup(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
		if err := r.saveSnapshot(); err != nil {
			t.Fatal(err)
		}
	}
	lookupAndSave("east")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	lookupAndSave("east")
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Error("nothing changed, and it was written")
	}
	lookupAndSave("west")
	checkSnapshotFile(t, file, "west", "east")
	r.cfg.Snapshot = filepath.Join(t.TempDir(), "missing", "routes.json")
	o.set(alice, MatchUser, "east")
	r.cache.invalidateUser(alice.String())
	if _, err := r.Lookup(t.Context(), alice); err != nil {
		t.Fatal(err)
	}
	if err := r.saveSnapshot(); err == nil {
		t.Error("a folder that is missing is no error")
	}
	r.cfg.Snapshot = file
	if err := r.saveSnapshot(); err != nil {
		t.Fatal(err)
	}
	checkSnapshotFile(t, file, "east", "west") // the failed write was repeated
}

// A file that another user may have written decides no route, and a FIFO does not keep a
// gateway from starting.
func TestAnUntrustedSnapshotFileIsIgnored(t *testing.T) {
	good := `{"version":1,"routes":[{"user":"alice","backend":"east","source":"user","learned":"` + time.Now().UTC().Format(time.RFC3339) + `"}]}`
	for name, change := range map[string]func(file string) error{
		"a FIFO":            func(file string) error { return errors.Join(os.Remove(file), syscall.Mkfifo(file, 0o600)) },
		"a folder":          func(file string) error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
		"a symbolic link":   func(file string) error { return errors.Join(os.Rename(file, file+"2"), os.Symlink(file+"2", file)) },
		"writable by all":   func(file string) error { return os.Chmod(file, 0o602) },
		"writable by group": func(file string) error { return os.Chmod(file, 0o660) },
		"too large":         func(file string) error { return os.Truncate(file, maxSnapshot+1) }, // a sparse file
	} {
		file := filepath.Join(t.TempDir(), "routes.json")
		writeFile(t, file, good)
		if err := CheckSnapshot(file); err != nil {
			t.Fatal(err)
		}
		if err := change(file); err != nil {
			t.Fatal(err)
		}
		if CheckSnapshot(file) == nil {
			t.Errorf("%s: no error", name)
		}
		r := routerWithFile(t, file, newFakeStore())
		if got, err := r.Lookup(t.Context(), user(t, "alice")); !errors.Is(err, ErrUnavailable) {
			t.Errorf("%s: alice goes %+v, %v", name, got, err)
		}
	}
	if err := CheckSnapshot(filepath.Join(t.TempDir(), "none")); err != nil {
		t.Errorf("one that is missing: %v", err)
	}
	if os.Geteuid() != 0 {
		return // only root can change the owner
	}
	file := filepath.Join(t.TempDir(), "routes.json")
	writeFile(t, file, good)
	if err := os.Chown(file, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	if err := CheckSnapshot(file); err != nil {
		t.Errorf("the gateway's, seen by root: %v", err)
	}
	if got, err := routerWithFile(t, file, newFakeStore()).Lookup(t.Context(), user(t, "alice")); !errors.Is(err, ErrUnavailable) {
		t.Errorf("another user's: alice goes %+v, %v", got, err)
	}
}
