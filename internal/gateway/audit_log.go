package gateway

import (
	"slices"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

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
	g.metrics.ObserveAuditSinks(g.reportSinks)
	return nil
}

// reportSinks reports the state of each sink to the metrics.
func (g *Gateway) reportSinks(report func(metrics.AuditSinkStatus)) {
	for _, s := range g.audit.Sinks() {
		report(metrics.AuditSinkStatus(s))
	}
}

// recordSignal records an operator's signal, and err if it was not carried out.
func (g *Gateway) recordSignal(action event.Action, err error) {
	g.logLostRecord(event.OperatorAction, g.audit.OperatorAction(&audit.OperatorAction{Action: action, Operator: "signal", Err: err}))
}
