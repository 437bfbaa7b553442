package main

import (
	"context"
	"fmt"
	"io"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/config"
)

// newLog creates the ordinary log. It is not sampled: each session has one line,
// which an operator must be able to find.
func newLog(cfg config.Log, to io.Writer) (*zap.Logger, error) {
	level, err := zapcore.ParseLevel(cfg.Level)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	form := zap.NewProductionEncoderConfig()
	form.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00") // RFC 3339
	form.EncodeDuration = zapcore.StringDurationEncoder
	form.TimeKey = "time"
	encoder := zapcore.NewJSONEncoder(form)
	if cfg.Format == "console" {
		form.EncodeLevel = zapcore.CapitalLevelEncoder
		form.EncodeTime = zapcore.TimeEncoderOfLayout("15:04:05.000")
		encoder = zapcore.NewConsoleEncoder(form)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(to)), level)
	return zap.New(core, zap.AddStacktrace(zapcore.DPanicLevel)), nil
}

// redisLogger receives go-redis's own messages. They are details of its pool and are
// logged at debug level; package routing logs their effects.
type redisLogger struct{ log *zap.Logger }

// Printf implements the interface of redis.SetLogger.
func (r redisLogger) Printf(_ context.Context, format string, v ...any) {
	if r.log.Core().Enabled(zapcore.DebugLevel) {
		r.log.Debug("go-redis", zap.String("says", fmt.Sprintf(format, v...)))
	}
}

// setRedisLogger redirects go-redis's global logger, which prints to standard error,
// to the ordinary log.
func setRedisLogger(log *zap.Logger) { redis.SetLogger(redisLogger{log}) }
