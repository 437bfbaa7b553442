package auth

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// quiet is how long the file must have been left alone before it is read:
	// long enough for a writer that writes in place, short enough for a person
	// who waits for the effect.
	quiet = 200 * time.Millisecond
	// patience bounds how long a writer that never stops can put it off.
	patience = 2 * time.Second
	// pollEvery is for changes that nobody announces: network file systems,
	// links into other directories, a directory that was replaced.
	pollEvery = 30 * time.Second
)

// follow replaces the users whenever the file changes, until ctx is done. A
// file that is gone or bad changes nothing but the log. The directory is
// watched, not the file, because most writers put a new file in its place.
func (f *passwdFile) follow(ctx context.Context) {
	var events <-chan fsnotify.Event
	var lost <-chan error
	dir := filepath.Dir(f.path)
	watch, err := fsnotify.NewWatcher()
	if err == nil {
		defer watch.Close()
		events, lost = watch.Events, watch.Errors
		err = watch.Add(dir)
	}
	if err != nil {
		f.log.Warn("passwd-file is not watched, only polled", zap.String("file", f.path), zap.Duration("every", pollEvery), zap.Error(err))
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var settled settle
	f.refreshIfChanged() // between New and the watch nobody looked
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if f.concerned(e) {
				settled.restart()
			}
		case <-lost: // the kernel's queue ran over: anything may have happened
			settled.restart()
		case <-settled.due:
			settled = settle{}
			f.refresh()
		case <-poll.C:
			if watch != nil {
				_ = watch.Add(dir) // again, in case the directory was replaced
			}
			f.refreshIfChanged()
		}
	}
}

// settle is a burst of changes and the moment when it may be taken as over.
type settle struct {
	since time.Time
	due   <-chan time.Time // nil: no burst
}

// restart puts the moment off, but never beyond patience.
func (s *settle) restart() {
	if s.due == nil {
		s.since = time.Now()
	}
	s.due = time.After(max(0, min(quiet, patience-time.Since(s.since))))
}

// concerned says whether an event can mean other content: one of the file
// itself, or one of a link on its way that leads to another file now.
func (f *passwdFile) concerned(e fsnotify.Event) bool {
	if e.Has(fsnotify.Chmod) && e.Op == fsnotify.Chmod {
		return f.changed()
	}
	return filepath.Base(e.Name) == filepath.Base(f.path) || f.changed()
}

// changed compares the file with the one last read, without reading it.
func (f *passwdFile) changed() bool {
	info, err := os.Stat(f.path)
	if err != nil || f.last == nil {
		return true
	}
	return !os.SameFile(info, f.last) || info.Size() != f.last.Size() || !info.ModTime().Equal(f.last.ModTime())
}

func (f *passwdFile) refreshIfChanged() {
	if f.changed() {
		f.refresh()
	}
}

// refresh reads the file and takes it when it is good. The same complaint is
// logged once, however often somebody looks.
func (f *passwdFile) refresh() {
	u, info, err := f.read()
	f.last = info
	if err != nil {
		if text := err.Error(); text != f.complaint {
			f.complaint = text
			f.log.Error("passwd-file refused, the users before it stay", zap.String("file", f.path), zap.Error(err))
		}
		return
	}
	f.complaint = ""
	f.users.Store(u)
	f.log.Info("passwd-file read", zap.String("file", f.path), zap.Int("users", len(u.passwords)))
}
