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

// newLog makes the ordinary log. It is not sampled: the lines are one per
// session, and an operator who looks for a session must find it.
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

// redisLogger is where go-redis's own messages go. They are details of a pool;
// what they mean for routes is said by routing, so they show at debug only.
type redisLogger struct{ log *zap.Logger }

// Printf implements the interface of redis.SetLogger.
func (l redisLogger) Printf(_ context.Context, format string, v ...any) {
	if l.log.Core().Enabled(zapcore.DebugLevel) {
		l.log.Debug("go-redis", zap.String("says", fmt.Sprintf(format, v...)))
	}
}

// setRedisLogger points go-redis's global logger, which prints to standard error,
// at ours. The library has one for the process, so it is set where the process
// is owned.
func setRedisLogger(log *zap.Logger) { redis.SetLogger(redisLogger{log}) }
