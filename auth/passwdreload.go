package auth

import (
	"context"
	"os"

	"go.uber.org/zap"

	"imapgate/internal/filewatch"
)

// watch reloads the users whenever the file changes, until ctx is done. A missing or invalid
// file is logged and changes nothing else.
func (f *passwdFile) watch(ctx context.Context) {
	filewatch.Watcher{List: func() []string { return []string{f.path} }, Check: f.reloadIfChanged, Log: f.log}.Watch(ctx)
}

// reloadIfChanged reads the file only if it may have changed, because it may be large. The
// first call compares with the file that was opened at the start.
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

// reload reads the file and replaces the users if it is valid. It logs a repeated error only
// once.
func (f *passwdFile) reload() {
	u, _, err := f.load()
	if err != nil {
		if text := err.Error(); text != f.lastError {
			f.lastError = text
			f.log.Error("passwd-file is invalid, the previous users stay in service", zap.String("file", f.path), zap.Error(err))
		}
		return
	}
	f.lastError = ""
	f.users.Store(u)
	f.log.Info("passwd-file read", zap.String("file", f.path), zap.Int("users", len(u.passwords)))
}
