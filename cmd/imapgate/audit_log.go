package main

import (
	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/metrics"
)

// auditConfig is the audit log's part. Redis is left open.
func auditConfig(cfg *config.Config, f *files) audit.Config {
	a := cfg.Audit
	made := audit.Config{Path: a.Path, OnFailure: a.OnFailure, Commands: audit.Commands(a.Commands), Chain: a.Chain, First: a.First}
	if len(a.Sinks) > 0 {
		made.Path = "" // there is the default only
	}
	for i, s := range a.Sinks {
		stream := s.Stream
		if stream == "" && cfg.Redis != nil {
			stream = cfg.Redis.Prefix + "audit"
		}
		made.Sinks = append(made.Sinks, audit.SinkConfig{
			Type: s.Type, Name: s.Name, OnFailure: s.OnFailure, Events: s.Events, Results: s.Results, Path: s.Path,
			Address: s.Address, TLS: f.client(sinkKey(i)), Facility: s.Facility, Format: s.Format, Stream: stream, Max: int64(s.MaxRecords),
		})
	}
	return made
}

// openAudit opens the audit log. Of the rooms that read files it is the last:
// opening it makes one.
func (g *gateway) openAudit() error {
	cfg := auditConfig(g.cfg, g.files)
	cfg.Redis = g.redis
	var err error
	if g.audit, err = audit.Open(cfg, g.log); err != nil {
		return auditKeys(g.cfg).place("audit", err)
	}
	g.metrics.ObserveAudit(g.audit.Lost, g.audit.Ready)
	g.metrics.ObserveAuditSinks(g.reportSinks)
	return nil
}

// reportSinks tells the metrics how each sink fares.
func (g *gateway) reportSinks(report func(metrics.AuditSink)) {
	for _, s := range g.audit.Sinks() {
		report(metrics.AuditSink(s))
	}
}

// noteSignal writes down what an operator asked for by a signal, and why it was not done.
func (g *gateway) noteSignal(what audit.Action, why error) {
	if err := g.audit.OperatorAction(&audit.Operator{Action: what, By: "signal", Err: why}); err != nil {
		g.log.Warn("an operator's signal is not in the audit log", zap.Error(err))
	}
}
