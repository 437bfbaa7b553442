package follow

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/testbed"
)

func TestABurstOfChangesIsReadOnceAndAStreamOfThemIsNotPutOffForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w watch
		began := time.Now()
		w.settle()
		<-w.due
		if took := time.Since(began); took != quiet {
			t.Errorf("a single change is read after %v", took)
		}
		w.due = nil
		began = time.Now()
		w.settle()
		for range 100 { // changes every 50 ms
			select {
			case <-w.due:
				if took := time.Since(began); took != longest {
					t.Errorf("a stream of changes is read after %v", took)
				}
				return
			case <-time.After(50 * time.Millisecond):
				w.settle()
			}
		}
		t.Error("a stream of changes is never read")
	})
}

func TestWhatIsWrittenToOtherFilesIsNothing(t *testing.T) {
	w := watch{names: []string{"/etc/tls/a.pem"}}
	for _, c := range []struct {
		event        fsnotify.Event
		named, heeds bool
	}{
		{fsnotify.Event{Name: "/etc/tls/log", Op: fsnotify.Write}, false, false},
		{fsnotify.Event{Name: "/etc/tls/log", Op: fsnotify.Chmod}, false, false},
		{fsnotify.Event{Name: "/etc/tls/..data", Op: fsnotify.Create}, false, true},
		{fsnotify.Event{Name: "/etc/tls/a.pem", Op: fsnotify.Chmod}, false, true},
		{fsnotify.Event{Name: "/etc/tls/a.pem", Op: fsnotify.Write}, true, true},
		{fsnotify.Event{Name: "/etc/tls/a.pem", Op: fsnotify.Remove}, true, true},
	} {
		w.named, w.due = false, nil
		w.heed(c.event)
		if w.named != c.named || (w.due != nil) != c.heeds {
			t.Errorf("%v: named %v, heeded %v", c.event, w.named, w.due != nil)
		}
	}
}

func TestAFileWithARelativePathIsFollowedByEvents(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("one", []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	w := watch{Files: Files{List: func() []string { return []string{"one"} }}, watcher: watcher}
	w.renew()
	if err := os.WriteFile("one", []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	testbed.Within(t, testbed.Patience, "an event that is taken for the file's", func() bool {
		select {
		case e := <-watcher.Events:
			w.heed(e)
		default:
		}
		return w.named && w.due != nil
	})
}

// source is a Source of one file whose content is good unless it is "bad".
type source struct {
	file string

	mu   sync.Mutex
	text string
}

func (s *source) Files() []string { return []string{s.file} }

func (s *source) Reload() (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := os.ReadFile(s.file)
	switch {
	case err != nil:
		return false, err
	case string(text) == "bad":
		return false, errors.New("it is bad")
	}
	old := s.text
	s.text = string(text)
	return s.text != old, nil
}

func (s *source) holds(text string) func() bool {
	return func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.text == text }
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestASetFollowsItsSourcesAndSaysEachThingOnce(t *testing.T) {
	dir := t.TempDir()
	one, two := &source{file: filepath.Join(dir, "one")}, &source{file: filepath.Join(dir, "later", "two")}
	write(t, one.file, "1")
	core, logs := observer.New(zapcore.InfoLevel)
	set := NewSet(zap.New(core))
	set.Add("two", two)
	set.Add("one", one)
	if changed, err := set.Reload(); !slices.Equal(changed, []string{"one"}) || err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", changed, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = set.Run(ctx) })
	defer running.Wait()
	defer stop()

	write(t, one.file, "2")
	testbed.Within(t, testbed.Patience, "the change", one.holds("2"))
	write(t, one.file, "bad")
	said := func(text, key string) func() bool {
		return func() bool {
			return logs.FilterMessage(text).FilterField(zap.String("key", key)).Len() == 1
		}
	}
	testbed.Within(t, testbed.Patience, "the complaint", said("files are not usable, the last good ones stay in service", "one"))
	write(t, one.file, "3")
	testbed.Within(t, testbed.Patience, "the repair", one.holds("3"))
	testbed.Within(t, testbed.Patience, "its report", said("files are good again", "one"))
	if changed, err := set.Reload(); len(changed) != 0 || err == nil {
		t.Errorf("%v, %v", changed, err)
	}
	if !said("files are not usable, the last good ones stay in service", "two")() {
		t.Error("one complaint is not logged exactly once")
	}
}
