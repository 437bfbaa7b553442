package main

import (
	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/metrics"
)

// auditConfig is the audit log's part. Redis is left open.
func auditConfig(cfg *config.Config, f *watchedFiles) audit.Config {
	a := cfg.Audit
	out := audit.Config{Path: a.Path, OnFailure: a.OnFailure, Commands: audit.CommandFilter(a.Commands), Chain: a.Chain, FirstPerMinute: a.FirstPerMinute}
	if len(a.Sinks) > 0 {
		out.Path = "" // there is the default only
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

// openAudit opens the audit log. Of the rooms that read files it is the last:
// opening it makes one.
func (g *gateway) openAudit() error {
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

// reportSinks tells the metrics how each sink fares.
func (g *gateway) reportSinks(report func(metrics.AuditSinkStatus)) {
	for _, s := range g.audit.Sinks() {
		report(metrics.AuditSinkStatus(s))
	}
}

// recordSignal writes down what an operator asked for by a signal, and why it was not done.
func (g *gateway) recordSignal(action audit.Action, err error) {
	if recordErr := g.audit.OperatorAction(&audit.OperatorAction{Action: action, Operator: "signal", Err: err}); recordErr != nil {
		g.log.Warn("an operator's signal is not in the audit log", zap.Error(recordErr))
	}
}
