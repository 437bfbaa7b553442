package metrics

import "github.com/prometheus/client_golang/prometheus"

// Results of audit records.
const (
	written = "written"
	lost    = "lost"
)

// AuditSinkStatus is the state of one sink of the audit log.
type AuditSinkStatus struct {
	Name           string // from the configuration
	WrittenRecords uint64
	LostRecords    uint64
	Failing        bool
}

// auditSinkCollector is a prometheus.Collector that queries the sinks at each
// scrape.
type auditSinkCollector struct {
	reportAll func(report func(AuditSinkStatus)) // Set once.
	records   *prometheus.Desc                   // Set once.
	up        *prometheus.Desc                   // Set once.
}

// ObserveAuditSinks exports the state of each sink of the audit log. Each scrape
// calls reportAll.
func (m *Metrics) ObserveAuditSinks(reportAll func(report func(AuditSinkStatus))) {
	m.registry.MustRegister(auditSinkCollector{
		reportAll: reportAll,
		records:   prometheus.NewDesc("imapgate_audit_records_total", "Audit records, by sink and result.", []string{"sink", "result"}, nil),
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
