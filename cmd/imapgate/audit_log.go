package main

import (
	"crypto/tls"
	"net"
	"strings"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/metrics"
	"imapgate/tlsconf"
)

// auditConfig is the audit log's part, with CA files read. Redis is left open.
func auditConfig(cfg *config.Config) (audit.Config, error) {
	a := cfg.Audit
	made := audit.Config{Path: a.Path, OnFailure: a.OnFailure, Commands: audit.Commands(a.Commands), Chain: a.Chain, First: a.First}
	if len(a.Sinks) > 0 {
		made.Path = "" // there is the default only
	}
	for i, s := range a.Sinks {
		secured, err := sinkTLS(s)
		if err != nil {
			return made, config.At(config.Indexed("audit.sinks", i)+".ca", err)
		}
		stream := s.Stream
		if stream == "" && cfg.Redis != nil {
			stream = cfg.Redis.Prefix + "audit"
		}
		made.Sinks = append(made.Sinks, audit.SinkConfig{
			Type: s.Type, Name: s.Name, OnFailure: s.OnFailure, Events: s.Events, Results: s.Results, Path: s.Path,
			Address: s.Address, TLS: secured, Facility: s.Facility, Format: s.Format, Stream: stream, Max: int64(s.MaxRecords),
		})
	}
	return made, nil
}

// sinkTLS is nil for a sink without TLS.
func sinkTLS(s config.AuditSink) (*tls.Config, error) {
	address, ok := strings.CutPrefix(s.Address, "tls://")
	if !ok {
		return nil, nil
	}
	server := s.ServerName
	if server == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		server = host
	}
	made, err := tlsconf.Client(tlsconf.ClientConfig{CA: s.CA, ServerName: server})
	if err != nil {
		return nil, err
	}
	made.NextProtos = nil // RFC 5425 has no ALPN name, and a log server is not IMAP
	return made, nil
}

// openAudit opens the audit log. Of the rooms that read files it is the last:
// opening it makes one.
func (g *gateway) openAudit() error {
	cfg, err := auditConfig(g.cfg)
	if err != nil {
		return err
	}
	cfg.Redis = g.redis
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

// noteSignal writes down what an operator asked for by a signal.
func (g *gateway) noteSignal(what audit.Action) {
	if err := g.audit.OperatorAction(&audit.Operator{Action: what, By: "signal"}); err != nil {
		g.log.Warn("an operator's signal is not in the audit log", zap.Error(err))
	}
}
