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

// Source is an object made from files. Only one goroutine at a time calls its methods.
type Source interface {
	// Files returns the files to watch, like Watcher.List.
	Files() []string
	// Reload reads the files again. The error names each unusable file, whose last good version
	// stays in service.
	Reload() (changed bool, err error)
}

// Reloader reloads sources when their files change. Each source has the key of the
// configuration that names its files.
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
	lastError string // last logged error; "" if the files were good
}

// NewReloader returns a Reloader without sources.
func NewReloader(log *zap.Logger) *Reloader { return &Reloader{log: log} }

// Add adds a source. It must be called before Run.
func (r *Reloader) Add(key string, source Source) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watched = append(r.watched, watchedSource{key: key, source: source})
	slices.SortStableFunc(r.watched, func(a, b watchedSource) int { return cmp.Compare(a.key, b.key) })
}

// Run watches the files until ctx is done, and returns nil.
func (r *Reloader) Run(ctx context.Context) error {
	// Reload compares contents, so it may be called without a change. It must
	// be, because a certificate can become valid without one.
	Watcher{List: r.Files, Check: func(bool) { _, _ = r.Reload() }, Log: r.log}.Watch(ctx)
	return nil
}

// Reload reads all files again and logs the results; it logs a repeated error once. It returns
// the keys whose new content is in force, and the errors of unusable files, whose last good
// version stays in service.
func (r *Reloader) Reload() (changed []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for i := range r.watched {
		m := &r.watched[i]
		sourceChanged, err := m.source.Reload()
		if sourceChanged {
			changed = append(changed, m.key)
			r.log.Info("files reloaded", zap.String("key", m.key))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.key, err))
		}
		m.logResult(r.log, err)
	}
	return changed, errors.Join(errs...)
}

// logResult logs a new error, and its end.
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

// Files returns the files of all sources, sorted.
func (r *Reloader) Files() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, m := range r.watched {
		all = append(all, m.source.Files()...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
