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

	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/listen"
)

// gcPercent trades memory for CPU where memory is cheap: in a burst of logins,
// whose garbage is many times what stays. What the heap grew by is given back
// when the burst is over (splice's clock), so idle sessions do not pay for it.
const gcPercent = 200

// rootWarning is logged when serve runs as root.
const rootWarning = "running as root, and a gateway that faces the internet needs no right but its ports: " +
	"use the systemd unit in deploy/, or setcap cap_net_bind_service=+ep and an ordinary user (--allow-root silences this)"

var errForcedExit = errors.New("ended at once by a second signal; sessions were cut")

func newServe() *cobra.Command {
	var file string
	var allowRoot bool
	cmd := &cobra.Command{
		Use:   "serve [FILE]",
		Short: "Run the gateway",
		Long: `Run the gateway until SIGTERM or SIGINT.

  SIGTERM, SIGINT  accept no more clients, say BYE to those before login, end sessions one
                   after the other over limits.drain_timeout, exit 0; a second one ends at once
  SIGHUP           open the audit log anew, read certificates, CAs and secrets again, and
                   say whether the configuration has changed, which needs a restart

Another gateway may be started beside one that drains.

GOMEMLIMIT and GOGC are respected; without the first, 80 % of the memory limit of the
control group, or of one above it, is.`,
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

// prepareProcess sets what holds for the whole process.
func prepareProcess() error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	return hardenProcess()
}

// serve runs a gateway until ctx is done or a signal ends it. A warning is the
// first line of the log. What goes wrong once the configuration is read is the last
// line of the log, in its format.
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
	defer func() { _ = log.Sync() }() // a terminal cannot be synced
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
		log.Error("the gateway does not start", zap.Error(err))
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

// startGateway opens a gateway and has it listen.
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
			log.Warn("another process listens there too, and gets a part of the clients until it ends",
				zap.String("listener", name), zap.Stringer("address", addr))
		}
	}
	if g.admin != nil {
		log.Info("listening", zap.String("listener", "admin"), zap.Stringer("address", g.admin.Addr()))
	}
	return g, nil
}

// notifySignals begins to collect signals. It comes first of all: a SIGHUP that
// nobody collects kills, and one may be sent as soon as the process is there.
// Those that come before obey wait; more than four say nothing new.
func notifySignals() chan os.Signal {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return signals
}

// runUntilSignal runs the gateway and does what signals say, until it has ended.
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
				return errForcedExit // the process ends, and with it what is left
			default:
				g.recordSignal(audit.ActDrain, nil)
				g.log.Info("draining", zap.Stringer("signal", s), zap.Duration("sessions_may_take", g.cfg.Limits.DrainTimeout))
				drain()
			}
		}
	}
}

// runAndReport is run as a goroutine; it ends when the gateway has, and says how.
func (g *gateway) runAndReport(ctx context.Context, done chan<- error) { done <- g.run(ctx) }

// reload is SIGHUP: it reads again what can be while sessions go on, and says of the
// configuration whether it is still the one in use. No other file needs the signal: all
// are followed.
func (g *gateway) reload() {
	const reread = "audit log, certificates, secrets"
	g.audit.Reopen()
	changed, filesErr := g.files.Reload()
	err := joinLines(errors.Join(g.checkConfigUnchanged(), filesErr))
	g.recordSignal(audit.ActReload, err)
	g.metrics.CountReload(err)
	if recordErr := g.audit.ConfigReloaded(reread, err); recordErr != nil {
		g.log.Warn("the reload is not in the audit log", zap.Error(recordErr))
	}
	if err != nil {
		g.log.Warn("read again; not all that is in the files is in use", zap.String("reread", reread), zap.Error(err))
		return
	}
	g.log.Info("read again; the configuration is the one in use", zap.String("reread", reread), zap.Strings("changed", changed))
}

// joinLines is an error that says everything in one line; nil stays nil.
func joinLines(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// checkConfigUnchanged says why the configuration that is in the file now is not in use.
func (g *gateway) checkConfigUnchanged() error {
	if info, err := os.Stat(g.file); err == nil && !info.Mode().IsRegular() {
		return nil // a pipe is read once
	}
	now, err := config.Load(g.file)
	if err != nil {
		g.log.Error("the configuration is broken and the one in use stays; a restart would fail", zap.Error(err))
		return shortenError(err)
	}
	if keys := g.cfg.ChangedKeys(now); len(keys) > 0 {
		return fmt.Errorf("%s has changed, which needs a restart: %s", g.file, strings.Join(keys, ", "))
	}
	return nil
}

// shortenError is an error of config.Load, short.
func shortenError(err error) error {
	var invalid *config.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) == 1 {
		return err
	}
	all := len(invalid.Problems)
	return fmt.Errorf("%w (and %d more)", &config.InvalidError{File: invalid.File, Problems: invalid.Problems[:1]}, all-1)
}
