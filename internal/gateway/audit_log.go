package gateway

import (
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

// auditConfig returns the settings of the audit log, without the Redis client.
func auditConfig(cfg *config.Config, f *watchedFiles) audit.Config {
	a := cfg.Audit
	out := audit.Config{Path: a.Path, OnFailure: a.OnFailure, Commands: audit.CommandFilter(a.Commands), Chain: a.Chain, FirstPerMinute: a.FirstPerMinute}
	if len(a.Sinks) > 0 {
		out.Path = "" // it can only be the default
	}
	for i, s := range a.Sinks {
		stream := s.Stream
		if stream == "" && cfg.Redis != nil {
			stream = cfg.Redis.Prefix + "audit"
		}
		out.Sinks = append(out.Sinks, audit.SinkConfig{
			Type: s.Type, Name: s.Name, OnFailure: s.OnFailure, Events: s.Events, Results: s.Results, Path: s.Path,
			Address: s.Address, TLS: f.clientTLS(sinkKey(i)), Facility: s.Facility, Format: s.Format, Stream: stream, MaxRecords: int64(s.MaxRecords),
		})
	}
	return out
}

// openAudit opens the audit log, which creates a file. It runs after everything else
// that reads files.
func (g *Gateway) openAudit() error {
	cfg := auditConfig(g.cfg, g.files)
	cfg.Redis = g.redis
	var err error
	if g.audit, err = audit.Open(cfg, g.log); err != nil {
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
