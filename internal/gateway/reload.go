package gateway

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

// RecordDrain logs and records that an operator's signal begins the drain.
func (g *Gateway) RecordDrain(signal os.Signal) {
	g.recordSignal(event.ActionDrain, nil)
	g.log.Info("draining", zap.Stringer("signal", signal), zap.Duration("sessions_may_take", g.cfg.Limits.DrainTimeout))
}

// Reload is for SIGHUP: it reopens and reloads what it can while sessions continue,
// and checks whether the configuration is still the one in use. Other files are
// watched and need no signal.
func (g *Gateway) Reload() { _, _ = g.reload("signal") }

// reload is Reload for an operator. It returns the keys whose files have changed, and why the
// new configuration is not in force.
func (g *Gateway) reload(by string) (changed []string, failure error) {
	const reread = "audit log, certificates, secrets"
	g.audit.Reopen()
	changed, filesErr := g.files.Reload()
	failure = errors.Join(g.checkConfigUnchanged(), filesErr)
	err := joinLines(failure)
	g.recordAction(event.ActionReload, by, "", err)
	g.metrics.CountReload(err)
	g.noteReload(err)
	reloaded := event.ConfigReloaded
	if err != nil {
		reloaded = event.ConfigRejected
	}
	g.logLostRecord(reloaded, g.audit.ConfigReloaded(reread, err))
	if err != nil {
		g.log.Warn("reloaded; some of the files' content is not in use", zap.String("reread", reread), zap.Error(err))
		return changed, failure
	}
	g.log.Info("reloaded; the configuration is unchanged", zap.String("reread", reread), zap.Strings("changed", changed))
	return changed, nil
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
func (g *Gateway) checkConfigUnchanged() error {
	if info, err := os.Stat(g.cfg.File()); err == nil && !info.Mode().IsRegular() {
		return nil // a pipe can be read only once
	}
	now, err := config.Load(g.cfg.File())
	if err != nil {
		g.log.Error("the configuration file is invalid; the previous configuration stays in use, and a restart would fail", zap.Error(err))
		return shortenError(err)
	}
	if keys := g.cfg.ChangedKeys(now); len(keys) > 0 {
		return fmt.Errorf("%s has changed, which needs a restart: %s", g.cfg.File(), strings.Join(keys, ", "))
	}
	return nil
}

func shortenError(err error) error {
	var invalid *config.InvalidError
	if !errors.As(err, &invalid) || len(invalid.Problems) == 1 {
		return err
	}
	all := len(invalid.Problems)
	return fmt.Errorf("%w (and %d more)", &config.InvalidError{File: invalid.File, Problems: invalid.Problems[:1]}, all-1)
}

// auditConfig returns the configuration of the audit log.
func (g *Gateway) auditConfig() audit.Config {
	out := audit.Config{Settings: g.cfg.Audit, Redis: g.redis}
	out.Sinks = slices.Clone(out.Sinks)
	for i := range out.Sinks {
		s := &out.Sinks[i]
		s.TLS = g.files.clientTLS(sinkKey(i))
		if s.Stream == "" && g.cfg.Redis != nil {
			s.Stream = g.cfg.Redis.Prefix + "audit"
		}
	}
	return out
}

// openAudit opens the audit log, which creates a file. It runs after everything else
// that reads files.
func (g *Gateway) openAudit() error {
	var err error
	if g.audit, err = audit.Open(g.auditConfig(), g.log); err != nil {
		return auditFileKeys(g.cfg).addKeys("audit", err)
	}
	g.metrics.ObserveAudit(g.audit.LostRecords, g.audit.Ready)
	g.metrics.ObserveAuditSinks(func(report func(metrics.AuditSinkStatus)) {
		for _, s := range g.audit.Sinks() {
			report(metrics.AuditSinkStatus(s))
		}
	})
	return nil
}

// recordSignal records an operator's signal, and err if it was not carried out.
func (g *Gateway) recordSignal(action event.Action, err error) {
	g.logLostRecord(event.OperatorAction, g.audit.OperatorAction(&audit.OperatorAction{Action: action, Operator: "signal", Err: err}))
}
