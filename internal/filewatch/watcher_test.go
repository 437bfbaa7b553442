package filewatch

import (
	"context"
	"errors"
	"imapgate/internal/testkit"
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
)

func TestChangesAreDebouncedUpToMaximum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w watchState
		start := time.Now()
		w.debounce()
		<-w.debounced
		if took := time.Since(start); took != debounceDelay {
			t.Errorf("a single change is read after %v", took)
		}
		w.debounced = nil
		start = time.Now()
		w.debounce()
		for range 100 { // changes every 50 ms
			select {
			case <-w.debounced:
				if took := time.Since(start); took != maxDebounce {
					t.Errorf("a stream of changes is read after %v", took)
				}
				return
			case <-time.After(50 * time.Millisecond):
				w.debounce()
			}
		}
		t.Error("a stream of changes is never read")
	})
}

func TestWritesToOtherFilesAreIgnored(t *testing.T) {
	w := watchState{paths: []string{"/etc/tls/a.pem"}}
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
		w.hasFileEvent, w.debounced = false, nil
		w.handleEvent(c.event)
		if w.hasFileEvent != c.named || (w.debounced != nil) != c.heeds {
			t.Errorf("%v: of the file %v, debounced %v", c.event, w.hasFileEvent, w.debounced != nil)
		}
	}
}

func TestRelativePathIsWatched(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("one", []byte("a"), 0o600); err != nil {
		t.Fatal(err)
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	w := watchState{Watcher: Watcher{List: func() []string { return []string{"one"} }}, notifier: watcher}
	w.updateWatches()
	if err := os.WriteFile("one", []byte("b"), 0o600); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "an event that is attributed to the file", func() bool {
		select {
		case e := <-watcher.Events:
			w.handleEvent(e)
		default:
		}
		return w.hasFileEvent && w.debounced != nil
	})
}

// fileSource is a Source of one file whose content is good unless it is "bad".
type fileSource struct {
	file string

	mu   sync.Mutex
	text string
}

func (s *fileSource) Files() []string { return []string{s.file} }

func (s *fileSource) Reload() (bool, error) {
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

func (s *fileSource) hasText(text string) func() bool {
	return func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.text == text }
}

func writeFile(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestReloaderReloadsSourcesAndLogsOnce(t *testing.T) {
	dir := t.TempDir()
	one, two := &fileSource{file: filepath.Join(dir, "one")}, &fileSource{file: filepath.Join(dir, "later", "two")}
	writeFile(t, one.file, "1")
	core, logs := observer.New(zapcore.InfoLevel)
	reloader := NewReloader(zap.New(core))
	reloader.Add("two", two)
	reloader.Add("one", one)
	if changed, err := reloader.Reload(); !slices.Equal(changed, []string{"one"}) || err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, %v", changed, err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { _ = reloader.Run(ctx) })
	defer running.Wait()
	defer stop()

	writeFile(t, one.file, "2")
	testkit.Eventually(t, "the change", one.hasText("2"))
	writeFile(t, one.file, "bad")
	hasLogged := func(text, key string) func() bool {
		return func() bool {
			return logs.FilterMessage(text).FilterField(zap.String("key", key)).Len() == 1
		}
	}
	testkit.Eventually(t, "the error in the log", hasLogged("files are not usable, the last good ones stay in service", "one"))
	writeFile(t, one.file, "3")
	testkit.Eventually(t, "the repaired file", one.hasText("3"))
	testkit.Eventually(t, "the end of the error in the log", hasLogged("files are good again", "one"))
	if changed, err := reloader.Reload(); len(changed) != 0 || err == nil {
		t.Errorf("%v, %v", changed, err)
	}
	if !hasLogged("files are not usable, the last good ones stay in service", "two")() {
		t.Error("an error is not logged exactly once")
	}
}
