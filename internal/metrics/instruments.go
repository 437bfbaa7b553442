package metrics

import (
	"time"

	"imapgate/internal/event"

	"github.com/prometheus/client_golang/prometheus"
)

// registrar creates instruments and registers them. A duplicate name is a
// programming error and panics.
type registrar struct{ *prometheus.Registry }

func (r registrar) gauge(name, help string) prometheus.Gauge {
	g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	r.MustRegister(g)
	return g
}

func (r registrar) counter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	r.MustRegister(c)
	return c
}

func (r registrar) counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	r.MustRegister(v)
	return v
}

// byLabel creates one instrument for each value of a closed set and for Other, so that
// every series exists from the start, with the value 0.
func byLabel[I any](values []string, create func(value ...string) I) map[string]I {
	set := map[string]I{event.Other: create(event.Other)}
	for _, value := range values {
		set[value] = create(value)
	}
	return set
}

func (r registrar) countersByLabel(name, help, label string, values []string) map[string]prometheus.Counter {
	return byLabel(values, r.counterVec(name, help, label).WithLabelValues)
}

func (r registrar) gaugesByLabel(name, help, label string, values []string) map[string]prometheus.Gauge {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
	r.MustRegister(vec)
	return byLabel(values, vec.WithLabelValues)
}

// labelSet is a label with the closed set of its values.
type labelSet struct {
	name   string
	values []string
}

// countersByLabels creates one counter for each pair of values.
func (r registrar) countersByLabels(name, help string, first, second labelSet) map[string]map[string]prometheus.Counter {
	vec := r.counterVec(name, help, first.name, second.name)
	return byLabel(first.values, func(value ...string) map[string]prometheus.Counter {
		return byLabel(second.values, vec.MustCurryWith(prometheus.Labels{first.name: value[0]}).WithLabelValues)
	})
}

func (r registrar) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
	r.MustRegister(h)
	return h
}

// instrumentFor returns the instrument of value, or that of Other.
func instrumentFor[I any, V ~string](set map[string]I, value V) I {
	if instrument, known := set[string(value)]; known {
		return instrument
	}
	return set[event.Other]
}

// Backend has the instruments of one configured backend.
type Backend struct {
	connects map[string]prometheus.Counter // Set once.
}

// Backend returns the instruments of a configured backend. Call it once for each.
func (m *Metrics) Backend(name string) *Backend {
	vec := m.upstreamConnects.MustCurryWith(prometheus.Labels{"backend": name})
	return &Backend{connects: byLabel(event.Values("ConnectResult"), vec.WithLabelValues)}
}

// CountConnect counts an attempt to connect and log in, by its result.
func (b *Backend) CountConnect(result event.ConnectResult) { instrumentFor(b.connects, result).Inc() }

// ObserveParked exports the number of sessions without a goroutine. Each scrape calls
// count.
func (m *Metrics) ObserveParked(count func() float64) {
	m.observe("imapgate_parked_sessions", "Idle sessions that hold no goroutine.", nil, count)
}

// ObserveSplicing exports whether all new sessions of a backend are spliced because it
// violated the protocol, and of how many users they are. Each scrape calls both.
func (m *Metrics) ObserveSplicing(backend string, spliced func() bool, users func() int) {
	labels := prometheus.Labels{"backend": backend}
	m.observe("imapgate_mux_backend_spliced", "1 while a backend's new sessions are spliced because it violated the protocol.",
		labels, func() float64 { return oneIf(spliced()) })
	m.observe("imapgate_mux_spliced_users", "Users whose new sessions are spliced because the backend violated the protocol in theirs.",
		labels, func() float64 { return float64(users()) })
}

// observe exports a gauge that each scrape computes.
func (m *Metrics) observe(name, help string, labels prometheus.Labels, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels}, value))
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}

// ObserveAudit exports the number of lost audit records, and whether new logins are
// blocked because records cannot be written.
func (m *Metrics) ObserveAudit(lostRecords func() uint64, ready func() error) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "imapgate_audit_lost_records_total", Help: "Audit records that were lost.",
	}, func() float64 { return float64(lostRecords()) }))
	m.observe("imapgate_audit_ready", "0 while new logins are blocked because the audit log cannot be written.",
		nil, func() float64 { return oneIf(ready() == nil) })
}

// AuditSinkStatus is the state of one sink of the audit log.
type AuditSinkStatus struct {
	Name           string // from the configuration
	WrittenRecords uint64
	LostRecords    uint64
	Failing        bool
}

// ObserveAuditSinks exports the state of each sink of the audit log. Each scrape
// calls reportAll.
func (m *Metrics) ObserveAuditSinks(reportAll func(report func(AuditSinkStatus))) {
	records := prometheus.NewDesc("imapgate_audit_records_total", "Audit records, by sink and result.", []string{"sink", "result"}, nil)
	up := prometheus.NewDesc("imapgate_audit_sink_up", "0 while a sink of the audit log cannot be written.", []string{"sink"}, nil)
	m.registry.MustRegister(collector{[]*prometheus.Desc{records, up}, func(out chan<- prometheus.Metric) {
		reportAll(func(s AuditSinkStatus) {
			out <- prometheus.MustNewConstMetric(records, prometheus.CounterValue, float64(s.WrittenRecords), s.Name, "written")
			out <- prometheus.MustNewConstMetric(records, prometheus.CounterValue, float64(s.LostRecords), s.Name, "lost")
			out <- prometheus.MustNewConstMetric(up, prometheus.GaugeValue, oneIf(!s.Failing), s.Name)
		})
	}})
}

// ObserveCertificates exports the expiry of the certificates. Each scrape calls reportAll,
// which calls report for each certificate file: the files may be reloaded. A file that is
// reported twice is exported once, because duplicate series would fail the whole scrape.
func (m *Metrics) ObserveCertificates(reportAll func(report func(file string, notAfter time.Time))) {
	desc := prometheus.NewDesc("imapgate_certificate_not_after_timestamp_seconds",
		"When a certificate expires that is served, or presented to another server.", []string{"file"}, nil)
	m.registry.MustRegister(collector{[]*prometheus.Desc{desc}, func(out chan<- prometheus.Metric) {
		seen := make(map[string]bool)
		reportAll(func(file string, notAfter time.Time) {
			if !seen[file] {
				seen[file] = true
				out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(notAfter.Unix()), file)
			}
		})
	}})
}

// collector is a prometheus.Collector of metrics that each scrape computes.
type collector struct {
	descs   []*prometheus.Desc                 // Set once.
	collect func(out chan<- prometheus.Metric) // Set once.
}

// Describe implements prometheus.Collector.
func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, desc := range c.descs {
		out <- desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) { c.collect(out) }
