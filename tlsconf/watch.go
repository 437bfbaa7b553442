package tlsconf

import (
	"context"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// settle is how long after the first event the files are read: a renewal
	// writes certificate and key one after the other.
	settle = 200 * time.Millisecond
	// recheck is how often the files are read without any event: network file
	// systems give none, and a directory on the way may have been swapped.
	recheck = 30 * time.Second
)

// expiryWarnings are the times before a certificate's end at which the
// operator hears of it, each once.
var expiryWarnings = [...]time.Duration{21 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// Run follows the files until ctx is done, which is no error. Directories are
// watched, not files, because renewals replace files by rename and Kubernetes
// swaps a symlink beside them.
func (s *Server) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil { // out of inotify instances: the regular check still follows
		s.log.Warn("certificates are checked by time only", zap.Duration("every", recheck), zap.Error(err))
		watcher = &fsnotify.Watcher{} // nil channels: never ready
	} else {
		defer watcher.Close()
	}
	ticker := time.NewTicker(recheck)
	defer ticker.Stop()

	var complaint string
	var due <-chan time.Time
	s.warnExpiry(time.Now())
	s.watch(watcher)
	complaint = s.follow(complaint) // for what changed before the watch stood
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			if due == nil { // later events do not push it back: a busy directory must not starve it
				due = time.After(settle)
			}
		case <-watcher.Errors: // an overflow: events were lost, so look
			if due == nil {
				due = time.After(settle)
			}
		case <-due:
			due = nil
			complaint = s.follow(complaint)
			s.watch(watcher)
		case <-ticker.C:
			complaint = s.follow(complaint)
			s.watch(watcher)
			s.warnExpiry(time.Now())
		}
	}
}

// follow reads the files and logs what came of it. The same complaint is
// logged once, not at every check; it is given back for the next call.
func (s *Server) follow(last string) string {
	changed, err := s.Reload()
	if changed {
		s.log.Info("certificates reloaded")
	}
	if err == nil {
		if last != "" {
			s.log.Info("certificate files are good again")
		}
		return ""
	}
	if err.Error() != last {
		s.log.Error("certificate files are not usable, the last good ones stay in service", zap.Error(err))
	}
	return err.Error()
}

// watch makes watcher watch the directories the files are in now, both by
// their configured path and by the one behind its symlinks.
func (s *Server) watch(watcher *fsnotify.Watcher) {
	if watcher.Events == nil {
		return
	}
	want := s.directories()
	for _, dir := range watcher.WatchList() {
		if !slices.Contains(want, dir) {
			_ = watcher.Remove(dir) // gone already: that is why
		}
	}
	for _, dir := range want {
		_ = watcher.Add(dir) // missing for now: the regular check tries again
	}
}

func (s *Server) directories() []string {
	files := []string{}
	for _, p := range s.cfg.Certificates {
		files = append(files, p.Cert, p.Key)
	}
	if s.cfg.ClientCA != "" {
		files = append(files, s.cfg.ClientCA)
	}
	var dirs []string
	for _, file := range files {
		dirs = append(dirs, filepath.Dir(file))
		if real, err := filepath.EvalSymlinks(file); err == nil {
			dirs = append(dirs, filepath.Dir(real))
		}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

// warnExpiry speaks once at each of expiryWarnings. An expired certificate
// stays in service: clients may know it, and none at all would serve nobody.
func (s *Server) warnExpiry(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pairs {
		left := p.cert.Leaf.NotAfter.Sub(now)
		level := 0 // how many of the warnings are due
		for level < len(expiryWarnings) && left <= expiryWarnings[level] {
			level++
		}
		if level <= s.warned[p.files.Cert] {
			continue
		}
		s.warned[p.files.Cert] = level
		fields := []zap.Field{zap.String("file", p.files.Cert), zap.Time("not_after", p.cert.Leaf.NotAfter.UTC())}
		if left <= 0 {
			s.log.Error("certificate has expired", fields...)
		} else {
			s.log.Warn("certificate expires soon", append(fields, zap.Duration("left", left.Round(time.Hour)))...)
		}
	}
}
