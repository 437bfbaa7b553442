package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/listen"
)

// gcPercent trades memory for CPU during bursts of logins, which produce much
// garbage. After a burst the heap's growth is released (splice's clock), so idle
// sessions do not pay for it.
const gcPercent = 200

// rootWarning is logged when serve runs as root.
const rootWarning = "running as root, but a gateway on the internet only needs the right to use its ports: " +
	"use the systemd unit in deploy/, or setcap cap_net_bind_service=+ep and an ordinary user (--allow-root silences this)"

var errForcedExit = errors.New("second signal: exited immediately, sessions were dropped")

func newServe() *cobra.Command {
	var file string
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
			return serve(cmd.Context(), file, warning, cmd.ErrOrStderr())
		},
	}
	configArgument(cmd, &file)
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
	for _, w := range toProblems(file, cfg.Locate(configWarnings(cfg))) {
		log.Warn(w.String())
	}
	limitMemory(log)

	g, err := startGateway(cfg, file, log)
	if err != nil {
		log.Error("the gateway cannot start", zap.Error(err))
		return errReported
	}
	err = g.runUntilSignal(ctx, signals)
	g.close()
	if err != nil {
		log.Error("the gateway ended with an error", zap.Error(err))
		return errReported
	}
	return nil
}

// startGateway opens a gateway and makes it listen.
func startGateway(cfg *config.Config, file string, log *zap.Logger) (*gateway, error) {
	g, err := openGateway(cfg, log)
	if err != nil {
		return nil, cfg.Locate(err)
	}
	g.file = file
	if err := g.listen(); err != nil {
		g.close()
		return nil, cfg.Locate(err)
	}
	for name, addr := range g.proxy.Addrs() {
		log.Info("listening", zap.String("listener", name), zap.Stringer("address", addr))
		if others, err := listen.IsShared(addr); err == nil && others {
			log.Warn("another process listens there too, and gets some of the clients until it ends",
				zap.String("listener", name), zap.Stringer("address", addr))
		}
	}
	if g.admin != nil {
		log.Info("listening", zap.String("listener", "admin"), zap.Stringer("address", g.admin.Addr()))
	}
	return g, nil
}

// notifySignals starts to collect signals. It runs first, because an uncaught SIGHUP
// would kill the process, and one may come as soon as the process exists. Signals
// wait for runUntilSignal; beyond four they add nothing.
func notifySignals() chan os.Signal {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return signals
}

// runUntilSignal runs the gateway until it has ended, and handles signals.
func (g *gateway) runUntilSignal(ctx context.Context, signals <-chan os.Signal) error {
	ctx, drain := context.WithCancel(ctx)
	defer drain()
	done := make(chan error, 1)
	go g.runAndReport(ctx, done)

	for {
		select {
		case err := <-done:
			return err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				g.reload()
			case ctx.Err() != nil:
				return errForcedExit // the process exits with the remaining sessions
			default:
				g.recordSignal(event.ActionDrain, nil)
				g.log.Info("draining", zap.Stringer("signal", s), zap.Duration("sessions_may_take", g.cfg.Limits.DrainTimeout))
				drain()
			}
		}
	}
}

// runAndReport runs as a goroutine; it ends with the gateway and sends its error.
func (g *gateway) runAndReport(ctx context.Context, done chan<- error) { done <- g.run(ctx) }

// reload handles SIGHUP: it reopens and reloads what it can while sessions continue,
// and checks whether the configuration is still the one in use. Other files are
// watched and need no signal.
func (g *gateway) reload() {
	const reread = "audit log, certificates, secrets"
	g.audit.Reopen()
	changed, filesErr := g.files.Reload()
	err := joinLines(errors.Join(g.checkConfigUnchanged(), filesErr))
	g.recordSignal(event.ActionReload, err)
	g.metrics.CountReload(err)
	reloaded := event.ConfigReloaded
	if err != nil {
		reloaded = event.ConfigRejected
	}
	g.logLostRecord(reloaded, g.audit.ConfigReloaded(reread, err))
	if err != nil {
		g.log.Warn("reloaded; some of the files' content is not in use", zap.String("reread", reread), zap.Error(err))
		return
	}
	g.log.Info("reloaded; the configuration is unchanged", zap.String("reread", reread), zap.Strings("changed", changed))
}

// joinLines joins the lines of an error into one; nil stays nil.
func joinLines(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// checkConfigUnchanged returns an error if the file's configuration is not the one
// in use.
func (g *gateway) checkConfigUnchanged() error {
	if info, err := os.Stat(g.file); err == nil && !info.Mode().IsRegular() {
		return nil // a pipe can be read only once
	}
	now, err := config.Load(g.file)
	if err != nil {
		g.log.Error("the configuration file is invalid; the previous configuration stays in use, and a restart would fail", zap.Error(err))
		return shortenError(err)
	}
	if keys := g.cfg.ChangedKeys(now); len(keys) > 0 {
		return fmt.Errorf("%s has changed, which needs a restart: %s", g.file, strings.Join(keys, ", "))
	}
	return nil
}

// shortenError shortens an error of config.Load to its first problem.
func shortenError(err error) error {
	var invalid *config.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) == 1 {
		return err
	}
	all := len(invalid.Problems)
	return fmt.Errorf("%w (and %d more)", &config.InvalidError{File: invalid.File, Problems: invalid.Problems[:1]}, all-1)
}
