package filewatch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.uber.org/zap"
)

// Source is something that was made of files. Its methods are called by one
// goroutine at a time.
type Source interface {
	// Files gives what to watch, as Files.List does.
	Files() []string
	// Reload reads the files again. What cannot be used is named in the error, and
	// the last good version of it stays in service.
	Reload() (changed bool, err error)
}

// Reloader is all that follows files, each under the key of the configuration that names
// them.
type Reloader struct {
	// Set once.
	log *zap.Logger

	mu sync.Mutex
	// Guarded by mu.
	watched []watchedSource
}

type watchedSource struct {
	key       string
	source    Source
	lastError string // what was last logged as wrong; "" when it was good
}

// NewReloader makes an empty Set.
func NewReloader(log *zap.Logger) *Reloader { return &Reloader{log: log} }

// Add has the files of source followed. It comes before Run.
func (s *Reloader) Add(key string, source Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watched = append(s.watched, watchedSource{key: key, source: source})
	slices.SortStableFunc(s.watched, func(a, b watchedSource) int { return cmp.Compare(a.key, b.key) })
}

// Run follows the files until ctx is done, which is no error.
func (s *Reloader) Run(ctx context.Context) error {
	// Reload compares contents, so it is cheap to call without a sign of change; it must
	// be, because a certificate can become valid without one.
	Watcher{List: s.Files, Check: func(bool) { _, _ = s.Reload() }, Log: s.log}.Watch(ctx)
	return nil
}

// Reload reads all files again and logs what came of it; the same complaint is logged
// once. It returns the keys whose files have new content that is in force now, and
// what cannot be used, of which the last good version stays in service.
func (s *Reloader) Reload() (changed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for i := range s.watched {
		m := &s.watched[i]
		sourceChanged, err := m.source.Reload()
		if sourceChanged {
			changed = append(changed, m.key)
			s.log.Info("files reloaded", zap.String("key", m.key))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.key, err))
		}
		m.logResult(s.log, err)
	}
	return changed, errors.Join(errs...)
}

// logResult logs a complaint that is new, and its end.
func (m *watchedSource) logResult(log *zap.Logger, err error) {
	switch {
	case err == nil && m.lastError != "":
		m.lastError = ""
		log.Info("files are good again", zap.String("key", m.key))
	case err != nil && err.Error() != m.lastError:
		m.lastError = err.Error()
		log.Error("files are not usable, the last good ones stay in service", zap.String("key", m.key), zap.Error(err))
	}
}

// Files gives what all of them watch, sorted.
func (s *Reloader) Files() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []string
	for _, m := range s.watched {
		all = append(all, m.source.Files()...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
