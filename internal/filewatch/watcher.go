// Package filewatch detects changes of files and reloads the objects made from them.
//
// The package does not know what the files contain. It watches directories, not files: renewals
// replace files by rename, certbot swaps links, and Kubernetes swaps a link beside them. Where
// no events arrive, as on network file systems, it compares the files every half minute.
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
	// debounceDelay is how long the files must be unchanged before they are read: a renewal
	// writes certificate and key one after the other.
	debounceDelay = 200 * time.Millisecond
	// maxDebounce bounds the delay by a writer that never stops.
	maxDebounce = 2 * time.Second
	// pollInterval is how often the files are compared without an event.
	pollInterval = 30 * time.Second
)

// Watcher calls Check when files may have changed.
type Watcher struct {
	// List returns the files, and the directories whose entries matter. It is called again
	// after each Check.
	List func() []string
	// Check reads the changed files. It is called at the beginning, after changes, and every
	// half minute; then changed is false if no change was detected.
	Check func(changed bool)
	Log   *zap.Logger
}

// Watch calls Check from this goroutine until ctx is done.
func (watcher Watcher) Watch(ctx context.Context) {
	notifier, err := fsnotify.NewWatcher()
	if err != nil { // out of inotify instances: polling still works
		watcher.Log.Warn("files cannot be watched and are polled instead", zap.Duration("every", pollInterval), zap.Error(err))
		notifier = &fsnotify.Watcher{} // nil channels: never ready
	} else {
		defer notifier.Close()
	}
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	w := watchState{Watcher: watcher, notifier: notifier}
	w.updateWatches() // before anything is read
	w.runCheck(w.detectChange())
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-notifier.Events:
			w.handleEvent(e)
		case <-notifier.Errors: // the kernel's queue overflowed: events were lost
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
	lastInfo map[string]fs.FileInfo // each file at the last comparison; nil: missing
	paths    []string               // the files and the targets of their links

	hasFileEvent bool // an event named one of the files since the last Check
	firstEvent   time.Time
	debounced    <-chan time.Time // nil: no event pending
}

// handleEvent schedules a check if an event may mean new content. It may if it names one of the
// files, or if a directory entry was added or removed: the entry may be a link on the path to a
// file. Writes to other files, such as a log, are ignored.
func (w *watchState) handleEvent(e fsnotify.Event) {
	isFile := slices.Contains(w.paths, filepath.Clean(e.Name)) // in "." the name is ./name
	if !isFile && !e.Has(fsnotify.Create) && !e.Has(fsnotify.Rename) && !e.Has(fsnotify.Remove) {
		return
	}
	w.hasFileEvent = w.hasFileEvent || isFile && e.Op != fsnotify.Chmod // Chmod counts only if detectChange finds a difference
	w.debounce()
}

// debounce delays the check until the files are unchanged, but by no more than maxDebounce.
func (w *watchState) debounce() {
	if w.debounced == nil {
		w.firstEvent = time.Now()
	}
	w.debounced = time.After(max(0, min(debounceDelay, maxDebounce-time.Since(w.firstEvent))))
}

// runCheck calls Check. The caller has updated the watches, so that no change after the reading
// is missed; runCheck updates them for files that Check has found.
func (w *watchState) runCheck(changed bool) {
	w.hasFileEvent = false
	w.Check(changed)
	if w.updateWatches() { // a change between the reading and the new watch has no event
		w.hasFileEvent = true
		w.debounce()
	}
}

// detectChange compares the metadata of the files with the last, without reading them.
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

// IsUnchanged reports whether two stat results are of one file with the same content; nil means
// no file.
func IsUnchanged(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

// updateWatches watches the current directories of the files, both of their configured paths
// and of the targets of their links. It reports whether a directory was added.
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
			_ = w.notifier.Remove(dir) // fails if the directory is gone
		}
	}
	for _, dir := range dirs {
		err := w.notifier.Add(dir) // a missing directory is added at the next poll
		added = added || err == nil && !slices.Contains(watched, dir)
	}
	return added
}
