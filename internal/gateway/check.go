package gateway

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/config"
	"imapgate/routing"
)

// Check returns all problems of the files that a configuration names, with which Open
// would fail, and warnings about settings that are valid but probably unintended. Both
// have their positions in the configuration. Check opens no connection and writes nothing.
func Check(cfg *config.Config) (problems, warnings error) {
	watched, err := openFiles(cfg, zap.NewNop())
	errs := []error{err}
	addErr := func(err error) { errs = append(errs, err) }
	sources, err := openAuthSources(cfg, watched, zap.NewNop())
	addErr(err)
	if err == nil {
		_, err = auth.New(authConfig(cfg), sources.toAuth(lookupNoPassword), zap.NewNop())
		addErr(withSettingKey(err))
	}
	if cfg.Routing.Source != routing.SourceRedis {
		_, err := routing.New(routingConfig(cfg), nil, routing.Metrics{}, zap.NewNop())
		addErr(config.WithKey("routing", err))
	}
	addErr(checkAuditFiles(cfg))
	warned := errors.Join(Warnings(cfg), watched.warnings(time.Now()))
	return cfg.Locate(errors.Join(errs...)), cfg.Locate(warned)
}

// lookupNoPassword replaces Redis where no user logs in.
func lookupNoPassword(context.Context, user) (secret, error) { return secret{}, auth.ErrUnknown }
