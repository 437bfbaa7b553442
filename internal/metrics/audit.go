package metrics

import "github.com/prometheus/client_golang/prometheus"

// Results of audit records.
const (
	written = "written"
	lost    = "lost"
)

// AuditSink is how one sink of the audit log fares.
type AuditSink struct {
	Name    string // from the configuration
	Written uint64 // records
	Lost    uint64 // records
	Failed  bool
}

// auditSinks is a prometheus.Collector that asks when it is scraped.
type auditSinks struct {
	each    func(report func(AuditSink)) // Set once.
	records *prometheus.Desc             // Set once.
	up      *prometheus.Desc             // Set once.
}

// ObserveAuditSinks shows, at each scrape, how each sink of the audit log fares.
func (m *Metrics) ObserveAuditSinks(each func(report func(AuditSink))) {
	m.registry.MustRegister(auditSinks{
		each:    each,
		records: prometheus.NewDesc("imapgate_audit_records_total", "Audit records by what became of them.", []string{"sink", "result"}, nil),
		up:      prometheus.NewDesc("imapgate_audit_sink_up", "0 while a sink of the audit log cannot be written.", []string{"sink"}, nil),
	})
}

// Describe implements prometheus.Collector.
func (a auditSinks) Describe(out chan<- *prometheus.Desc) { out <- a.records; out <- a.up }

// Collect implements prometheus.Collector.
func (a auditSinks) Collect(out chan<- prometheus.Metric) {
	a.each(func(s AuditSink) {
		up := 1.0
		if s.Failed {
			up = 0
		}
		out <- prometheus.MustNewConstMetric(a.records, prometheus.CounterValue, float64(s.Written), s.Name, written)
		out <- prometheus.MustNewConstMetric(a.records, prometheus.CounterValue, float64(s.Lost), s.Name, lost)
		out <- prometheus.MustNewConstMetric(a.up, prometheus.GaugeValue, up, s.Name)
	})
}
