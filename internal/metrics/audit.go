package metrics

import "github.com/prometheus/client_golang/prometheus"

// Results of audit records.
const (
	written = "written"
	lost    = "lost"
)

// AuditSinkStatus is how one sink of the audit log fares.
type AuditSinkStatus struct {
	Name           string // from the configuration
	WrittenRecords uint64 // records
	LostRecords    uint64 // records
	Failing        bool
}

// auditSinkCollector is a prometheus.Collector that asks when it is scraped.
type auditSinkCollector struct {
	reportAll func(report func(AuditSinkStatus)) // Set once.
	records   *prometheus.Desc                   // Set once.
	up        *prometheus.Desc                   // Set once.
}

// ObserveAuditSinks shows, at each scrape, how each sink of the audit log fares.
func (m *Metrics) ObserveAuditSinks(reportAll func(report func(AuditSinkStatus))) {
	m.registry.MustRegister(auditSinkCollector{
		reportAll: reportAll,
		records:   prometheus.NewDesc("imapgate_audit_records_total", "Audit records by what became of them.", []string{"sink", "result"}, nil),
		up:        prometheus.NewDesc("imapgate_audit_sink_up", "0 while a sink of the audit log cannot be written.", []string{"sink"}, nil),
	})
}

// Describe implements prometheus.Collector.
func (a auditSinkCollector) Describe(out chan<- *prometheus.Desc) { out <- a.records; out <- a.up }

// Collect implements prometheus.Collector.
func (a auditSinkCollector) Collect(out chan<- prometheus.Metric) {
	a.reportAll(func(s AuditSinkStatus) {
		up := 1.0
		if s.Failing {
			up = 0
		}
		out <- prometheus.MustNewConstMetric(a.records, prometheus.CounterValue, float64(s.WrittenRecords), s.Name, written)
		out <- prometheus.MustNewConstMetric(a.records, prometheus.CounterValue, float64(s.LostRecords), s.Name, lost)
		out <- prometheus.MustNewConstMetric(a.up, prometheus.GaugeValue, up, s.Name)
	})
}
