// Package follow notices when files change, and has what was made of them made
// again.
//
// It does not know what the files hold. Directories are watched, not files,
// because renewals replace files by rename, certbot swaps links, and Kubernetes
// swaps a link beside them; where no event comes, as on network file systems, the
// files are looked at every half minute.
package follow

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
	// quiet is how long the files must have been left alone before they are read:
	// a renewal writes certificate and key one after the other.
	quiet = 200 * time.Millisecond
	// longest bounds how long a writer that never stops can put it off.
	longest = 2 * time.Second
	// recheck is how often the files are looked at without any event.
	recheck = 30 * time.Second
)

// Files are files to be followed.
type Files struct {
	// List gives the files, and the directories whose entries matter. It is asked
	// again after each Look.
	List func() []string
	// Look reads what has changed. It is called at the beginning, after changes, and
	// every half minute; then changed is false where no sign of a change was seen.
	Look func(changed bool)
	Log  *zap.Logger
}

// Watch calls Look from this goroutine until ctx is done.
func (f Files) Watch(ctx context.Context) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil { // out of inotify instances: the regular look still follows
		f.Log.Warn("files are not watched, only looked at now and then", zap.Duration("every", recheck), zap.Error(err))
		watcher = &fsnotify.Watcher{} // nil channels: never ready
	} else {
		defer watcher.Close()
	}
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()
	w := watch{Files: f, watcher: watcher}
	w.renew() // the watch stands before anything is read
	w.look(w.notice())
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-watcher.Events:
			w.heed(e)
		case <-watcher.Errors: // the kernel's queue ran over: anything may have happened
			w.named = true
			w.settle()
		case <-w.due:
			w.due = nil
			w.renew()
			if changed := w.notice(); changed || w.named {
				w.look(true)
			}
		case <-ticker.C:
			w.renew()
			w.look(w.notice())
		}
	}
}

// watch is the state of one Watch, owned by its goroutine.
type watch struct {
	Files
	watcher *fsnotify.Watcher
	seen    map[string]fs.FileInfo // each file as it was before the last look; nil: not there
	names   []string               // the files and what their links lead to

	named bool // an event named one of the files since the last look
	since time.Time
	due   <-chan time.Time // nil: nothing has happened
}

// heed notes an event when it can mean other content: it names one of the files, or
// an entry of a directory has come or gone, which may be a link on the way to one.
// What is written to other files, a log's say, is nothing.
func (w *watch) heed(e fsnotify.Event) {
	named := slices.Contains(w.names, filepath.Clean(e.Name)) // in "." it is ./name
	if !named && !e.Has(fsnotify.Create) && !e.Has(fsnotify.Rename) && !e.Has(fsnotify.Remove) {
		return
	}
	w.named = w.named || named && e.Op != fsnotify.Chmod // which is only one if the file differs
	w.settle()
}

// settle puts the look off until the files are left alone, but never beyond longest.
func (w *watch) settle() {
	if w.due == nil {
		w.since = time.Now()
	}
	w.due = time.After(max(0, min(quiet, longest-time.Since(w.since))))
}

// look has the files read. The watch is renewed before, so that no change after the
// reading is missed, and here for files that the reading has found.
func (w *watch) look(changed bool) {
	w.named = false
	w.Look(changed)
	if w.renew() { // between the reading and the watch nobody looked
		w.named = true
		w.settle()
	}
}

// notice compares the files with how they were, without reading them.
func (w *watch) notice() (changed bool) {
	seen := make(map[string]fs.FileInfo)
	for _, name := range w.List() {
		info, err := os.Stat(name)
		if err != nil {
			info = nil
		}
		old, known := w.seen[name]
		changed = changed || !known || !Same(old, info)
		seen[name] = info
	}
	changed = changed || len(seen) != len(w.seen)
	w.seen = seen
	return changed
}

// Same reports whether two looks have seen one file with one content; nil is no file.
func Same(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

// renew watches the directories that the files are in now, both by their configured
// path and by the one that their links lead to. It reports whether there are others
// than before.
func (w *watch) renew() (more bool) {
	var dirs []string
	w.names = nil
	for _, name := range w.List() {
		name = filepath.Clean(name)
		w.names, dirs = append(w.names, name), append(dirs, filepath.Dir(name))
		real, err := filepath.EvalSymlinks(name)
		if err != nil {
			continue
		}
		if real != name {
			w.names, dirs = append(w.names, real), append(dirs, filepath.Dir(real))
		}
		if info, err := os.Stat(real); err == nil && info.IsDir() {
			dirs = append(dirs, name)
		}
	}
	if w.watcher.Events == nil {
		return false
	}
	slices.Sort(dirs)
	dirs = slices.Compact(dirs)
	watched := w.watcher.WatchList()
	for _, dir := range watched {
		if !slices.Contains(dirs, dir) {
			_ = w.watcher.Remove(dir) // gone already: that is why
		}
	}
	for _, dir := range dirs {
		err := w.watcher.Add(dir) // missing for now: the regular look tries again
		more = more || err == nil && !slices.Contains(watched, dir)
	}
	return more
}
