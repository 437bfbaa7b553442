package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"imapgate/internal/config"
	"imapgate/internal/gateway"
)

// gcPercent trades memory for CPU during bursts of logins, which produce much
// garbage. After a burst the heap's growth is released (splice's clock), so idle
// sessions do not pay for it.
const gcPercent = 200

// memoryRatio is the share of the control group's limit for the Go runtime. Near it
// the collector works harder, before the kernel kills the process.
const memoryRatio = 0.8

// rootWarning is logged when serve runs as root.
const rootWarning = "running as root, but a gateway on the internet only needs the right to use its ports: " +
	"use the systemd unit in deploy/, or setcap cap_net_bind_service=+ep and an ordinary user (--allow-root silences this)"

var errForcedExit = errors.New("second signal: exited immediately, sessions were dropped")

func newServe() *cobra.Command {
	var allowRoot bool
	cmd := &cobra.Command{
		Use:   "serve [FILE]",
		Short: "Run the gateway",
		Long: `Run the gateway until SIGTERM or SIGINT.

  SIGTERM, SIGINT  stop accepting clients, send BYE to those before login, end the sessions one
                   by one over limits.drain_timeout, exit 0; a second signal exits immediately
  SIGHUP           reopen the audit log, reload certificates, CAs and secrets, and report
                   whether the configuration has changed, which needs a restart

Another gateway may be started while one drains.

GOMEMLIMIT and GOGC are respected. Without GOMEMLIMIT the limit is 80 % of the memory limit of
the control group or of its parents.`,
		Example: "  imapgate serve /etc/imapgate.yaml\n  imapgate serve --config /etc/imapgate.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepareProcess(); err != nil {
				return err
			}
			warning := ""
			if os.Geteuid() == 0 && !allowRoot {
				warning = rootWarning
			}
			return serve(cmd.Context(), configFile(cmd), warning, cmd.ErrOrStderr())
		},
	}
	configArgument(cmd)
	cmd.Flags().BoolVar(&allowRoot, "allow-root", false, "run as root without a warning")
	return cmd
}

// prepareProcess sets process-wide limits.
func prepareProcess() error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return hardenProcess()
}

// serve runs a gateway until ctx is done or a signal ends it. A warning is the first
// line of the log. After the configuration is read, errors are logged in its format.
func serve(ctx context.Context, file, warning string, logTo io.Writer) error {
	signals := notifySignals()
	defer signal.Stop(signals)
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	log, err := newLog(cfg.Log, logTo)
	if err != nil {
		return err
	}
	defer func() { _ = log.Sync() }() // fails for a terminal
	setRedisLogger(log)
	if warning != "" {
		log.Warn(warning)
	}
	for _, w := range toProblems(file, cfg.Locate(gateway.Warnings(cfg))) {
		log.Warn(w.String())
	}
	limitMemory(log)

	g, err := gateway.Open(cfg, gateway.Options{Log: log, Version: readBuildInfo().Version})
	if err != nil {
		log.Error("the gateway cannot start", zap.Error(err))
		return errReported
	}
	err = runUntilSignal(ctx, g, signals)
	g.Close()
	if err != nil {
		log.Error("the gateway ended with an error", zap.Error(err))
		return errReported
	}
	return nil
}

// notifySignals starts to collect signals. It runs first, because an uncaught SIGHUP
// would kill the process, and one may come as soon as the process exists. Signals
// wait for runUntilSignal; beyond four they add nothing.
func notifySignals() chan os.Signal {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return signals
}

// runUntilSignal runs a gateway until it has ended, and handles signals.
func runUntilSignal(ctx context.Context, g *gateway.Gateway, signals <-chan os.Signal) error {
	ctx, drain := context.WithCancel(ctx)
	defer drain()
	done := make(chan error, 1)
	go runAndReport(ctx, g, done)

	draining := g.Draining()
	for {
		select {
		case err := <-done:
			return err
		case <-draining:
			draining = nil
			drain()
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				g.Reload()
			case ctx.Err() != nil:
				return errForcedExit // the process exits with the remaining sessions
			default:
				g.RecordDrain(s)
				drain()
			}
		}
	}
}

// runAndReport runs as a goroutine; it ends with the gateway and sends its error.
func runAndReport(ctx context.Context, g *gateway.Gateway, done chan<- error) { done <- g.Run(ctx) }

// limitMemory makes the collector respect the lowest memory limit of the process's
// control group and its parents, unless GOMEMLIMIT is set, and logs the limit.
func limitMemory(log *zap.Logger) {
	limit, err := memlimit.Set(memlimit.WithRatio(memoryRatio))
	switch {
	case errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported): // no limit
	case err != nil:
		log.Warn("memory limit of the control group is unknown; GOMEMLIMIT sets one", zap.Error(err))
	case limit < math.MaxInt64:
		log.Info("memory limit", zap.Int64("bytes", limit))
	}
}

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
