package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/config"
)

// gcPercent trades memory for CPU where memory is cheap: in a burst of logins,
// whose garbage is many times what stays. What the heap grew by is given back
// when the burst is over (splice's clock), so idle sessions do not pay for it.
const gcPercent = 200

// rootWarning is logged when serve runs as root.
const rootWarning = "running as root, and a gateway that faces the internet needs no right but its ports: " +
	"use the systemd unit in deploy/, or setcap cap_net_bind_service=+ep and an ordinary user (--allow-root silences this)"

var errAtOnce = errors.New("ended at once by a second signal; sessions were cut")

func newServe() *cobra.Command {
	var file string
	var allowRoot bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway",
		Long: `Run the gateway until SIGTERM or SIGINT.

  SIGTERM, SIGINT  accept no more clients, say BYE to those before login, give sessions
                   limits.drain to end, close the rest, exit 0; a second one ends at once
  SIGHUP           open the audit log anew and read certificates, CAs and secrets again;
                   a changed configuration needs a restart

GOMEMLIMIT and GOGC are respected; without the first, 80 % of the control group's limit is.`,
		Example: "  imapgate serve --config /etc/imapgate.yaml",
		Args:    cobra.NoArgs,
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
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&allowRoot, "allow-root", false, "run as root without a warning")
	return cmd
}

// prepareProcess sets what holds for the whole process.
func prepareProcess() error {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	limitMemory()
	return hardenProcess()
}

// serve runs a gateway until ctx is done or a signal ends it. A warning is the
// first line of the log.
func serve(ctx context.Context, file, warning string, logTo io.Writer) error {
	signals := hearSignals()
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
	quietRedis(log)
	if warning != "" {
		log.Warn(warning)
	}
	for _, said := range warnings(cfg) {
		log.Warn(said)
	}

	g, err := open(cfg, log)
	if err != nil {
		return err
	}
	defer g.close()
	if err := g.listen(); err != nil {
		return err
	}
	for name, addr := range g.proxy.Addrs() {
		log.Info("listening", zap.String("listener", name), zap.Stringer("address", addr))
	}
	if g.admin != nil {
		log.Info("listening", zap.String("listener", "admin"), zap.Stringer("address", g.admin.Addr()))
	}
	return g.obey(ctx, signals)
}

// hearSignals begins to collect signals. It comes first of all: a SIGHUP that
// nobody collects kills, and one may be sent as soon as the process is there.
// Those that come before obey wait; more than four say nothing new.
func hearSignals() chan os.Signal {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	return signals
}

// obey runs the gateway and does what signals say, until it has ended.
func (g *gateway) obey(ctx context.Context, signals <-chan os.Signal) error {
	ctx, drain := context.WithCancel(ctx)
	defer drain()
	ended := make(chan error, 1)
	go g.runInto(ctx, ended)

	for {
		select {
		case err := <-ended:
			return err
		case s := <-signals:
			switch {
			case s == syscall.SIGHUP:
				g.refresh()
			case ctx.Err() != nil:
				return errAtOnce // the process ends, and with it what is left
			default:
				g.noteSignal(audit.ActDrain)
				g.log.Info("draining", zap.Stringer("signal", s), zap.Duration("sessions_may_take", g.cfg.Limits.Drain))
				drain()
			}
		}
	}
}

// runInto is run as a goroutine; it ends when the gateway has, and says how.
func (g *gateway) runInto(ctx context.Context, ended chan<- error) { ended <- g.run(ctx) }

// refresh is SIGHUP. No file needs the signal: all are followed.
func (g *gateway) refresh() {
	g.audit.Reopen()
	g.noteSignal(audit.ActReload)
	changed, err := g.files.Reload() // which logs what is wrong
	if noted := g.audit.Reloaded(err); noted != nil {
		g.log.Warn("the reload is not in the audit log", zap.Error(noted))
	}
	g.log.Info("certificates read again", zap.Strings("changed", changed))
	g.log.Info("audit log opened anew; a changed configuration is not read before a restart")
}
