package auth

import (
	"context"
	"os"

	"go.uber.org/zap"

	"imapgate/internal/filewatch"
)

// watch replaces the users whenever the file changes, until ctx is done. A
// file that is gone or bad changes nothing but the log.
func (f *passwdFile) watch(ctx context.Context) {
	filewatch.Watcher{List: func() []string { return []string{f.path} }, Check: f.reloadIfChanged, Log: f.log}.Watch(ctx)
}

// reloadIfChanged reads the file when it may have changed: it may be large. The first look is for
// what changed since it was opened.
func (f *passwdFile) reloadIfChanged(changed bool) {
	if initial := f.initialInfo; initial != nil {
		f.initialInfo = nil
		info, err := os.Stat(f.path)
		changed = err != nil || !filewatch.IsUnchanged(initial, info)
	}
	if changed {
		f.reload()
	}
}

// reload reads the file and takes it when it is good. The same complaint is
// logged once, however often somebody looks.
func (f *passwdFile) reload() {
	u, _, err := f.load()
	if err != nil {
		if text := err.Error(); text != f.lastError {
			f.lastError = text
			f.log.Error("passwd-file refused, the users before it stay", zap.String("file", f.path), zap.Error(err))
		}
		return
	}
	f.lastError = ""
	f.users.Store(u)
	f.log.Info("passwd-file read", zap.String("file", f.path), zap.Int("users", len(u.passwords)))
}
