package auth

import (
	"context"
	"os"

	"go.uber.org/zap"

	"imapgate/internal/follow"
)

// follow replaces the users whenever the file changes, until ctx is done. A
// file that is gone or bad changes nothing but the log.
func (f *passwdFile) follow(ctx context.Context) {
	follow.Files{List: func() []string { return []string{f.path} }, Look: f.look, Log: f.log}.Watch(ctx)
}

// look reads the file when it may have changed: it may be large. The first look is for
// what changed since it was opened.
func (f *passwdFile) look(changed bool) {
	if opened := f.opened; opened != nil {
		f.opened = nil
		info, err := os.Stat(f.path)
		changed = err != nil || !follow.Same(opened, info)
	}
	if changed {
		f.refresh()
	}
}

// refresh reads the file and takes it when it is good. The same complaint is
// logged once, however often somebody looks.
func (f *passwdFile) refresh() {
	u, _, err := f.read()
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
