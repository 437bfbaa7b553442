// Package filewatch notices when files change, and has what was made of them made
// again.
//
// It does not know what the files hold. Directories are watched, not files,
// because renewals replace files by rename, certbot swaps links, and Kubernetes
// swaps a link beside them; where no event comes, as on network file systems, the
// files are looked at every half minute.
package filewatch

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// debounceDelay is how long the files must have been left alone before they are read:
	// a renewal writes certificate and key one after the other.
	debounceDelay = 200 * time.Millisecond
	// maxDebounce bounds how long a writer that never stops can put it off.
	maxDebounce = 2 * time.Second
	// pollInterval is how often the files are looked at without any event.
	pollInterval = 30 * time.Second
)

// Watcher are files to be followed.
type Watcher struct {
	// List gives the files, and the directories whose entries matter. It is asked
	// again after each Look.
	List func() []string
	// Check reads what has changed. It is called at the beginning, after changes, and
	// every half minute; then changed is false where no sign of a change was seen.
	Check func(changed bool)
	Log   *zap.Logger
}

// Watch calls Look from this goroutine until ctx is done.
func (f Watcher) Watch(ctx context.Context) {
	notifier, err := fsnotify.NewWatcher()
	if err != nil { // out of inotify instances: the regular look still follows
		f.Log.Warn("files are not watched, only looked at now and then", zap.Duration("every", pollInterval), zap.Error(err))
		notifier = &fsnotify.Watcher{} // nil channels: never ready
	} else {
		defer notifier.Close()
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	w := watchState{Watcher: f, notifier: notifier}
	w.updateWatches() // the watch stands before anything is read
	w.runCheck(w.detectChange())
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-notifier.Events:
			w.handleEvent(e)
		case <-notifier.Errors: // the kernel's queue ran over: anything may have happened
			w.hasFileEvent = true
			w.debounce()
		case <-w.debounced:
			w.debounced = nil
			w.updateWatches()
			if changed := w.detectChange(); changed || w.hasFileEvent {
				w.runCheck(true)
			}
		case <-ticker.C:
			w.updateWatches()
			w.runCheck(w.detectChange())
		}
	}
}

// watchState is the state of one Watch, owned by its goroutine.
type watchState struct {
	Watcher
	notifier *fsnotify.Watcher
	lastInfo map[string]fs.FileInfo // each file as it was before the last look; nil: not there
	paths    []string               // the files and what their links lead to

	hasFileEvent bool // an event named one of the files since the last look
	firstEvent   time.Time
	debounced    <-chan time.Time // nil: nothing has happened
}

// handleEvent notes an event when it can mean other content: it names one of the files, or
// an entry of a directory has come or gone, which may be a link on the way to one.
// What is written to other files, a log's say, is nothing.
func (w *watchState) handleEvent(e fsnotify.Event) {
	isFile := slices.Contains(w.paths, filepath.Clean(e.Name)) // in "." it is ./name
	if !isFile && !e.Has(fsnotify.Create) && !e.Has(fsnotify.Rename) && !e.Has(fsnotify.Remove) {
		return
	}
	w.hasFileEvent = w.hasFileEvent || isFile && e.Op != fsnotify.Chmod // which is only one if the file differs
	w.debounce()
}

// debounce puts the look off until the files are left alone, but never beyond longest.
func (w *watchState) debounce() {
	if w.debounced == nil {
		w.firstEvent = time.Now()
	}
	w.debounced = time.After(max(0, min(debounceDelay, maxDebounce-time.Since(w.firstEvent))))
}

// runCheck has the files read. The watch is renewed before, so that no change after the
// reading is missed, and here for files that the reading has found.
func (w *watchState) runCheck(changed bool) {
	w.hasFileEvent = false
	w.Check(changed)
	if w.updateWatches() { // between the reading and the watch nobody looked
		w.hasFileEvent = true
		w.debounce()
	}
}

// detectChange compares the files with how they were, without reading them.
func (w *watchState) detectChange() (changed bool) {
	current := make(map[string]fs.FileInfo)
	for _, name := range w.List() {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		old, known := w.lastInfo[name]
		changed = changed || !known || !IsUnchanged(old, info)
		current[name] = info
	}
	changed = changed || len(current) != len(w.lastInfo)
	w.lastInfo = current
	return changed
}

// IsUnchanged reports whether two looks have seen one file with one content; nil is no file.
func IsUnchanged(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

// updateWatches watches the directories that the files are in now, both by their configured
// path and by the one that their links lead to. It reports whether there are others
// than before.
func (w *watchState) updateWatches() (added bool) {
	var dirs []string
	w.paths = nil
	for _, name := range w.List() {
		name = filepath.Clean(name)
		w.paths, dirs = append(w.paths, name), append(dirs, filepath.Dir(name))
		target, err := filepath.EvalSymlinks(name)
		if err != nil {
			continue
		}
		if target != name {
			w.paths, dirs = append(w.paths, target), append(dirs, filepath.Dir(target))
		}
		if info, err := os.Stat(target); err == nil && info.IsDir() {
			dirs = append(dirs, name)
		}
	}
	if w.notifier.Events == nil {
		return false
	}
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	watched := w.notifier.WatchList()
	for _, dir := range watched {
		if !slices.Contains(dirs, dir) {
			_ = w.notifier.Remove(dir) // gone already: that is why
		}
	}
	for _, dir := range dirs {
		err := w.notifier.Add(dir) // missing for now: the regular look tries again
		added = added || err == nil && !slices.Contains(watched, dir)
	}
	return added
}
