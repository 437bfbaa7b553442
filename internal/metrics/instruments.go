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

// countersByLabel creates one counter for each value of a closed set and for Other,
// so that every series exists from the start, with the value 0.
func (r registrar) countersByLabel(name, help, label string, values []string) map[string]prometheus.Counter {
	vec := r.counterVec(name, help, label)
	set := map[string]prometheus.Counter{event.Other: vec.WithLabelValues(event.Other)}
	for _, value := range values {
		set[value] = vec.WithLabelValues(value)
	}
	return set
}

// gaugesByLabel is countersByLabel for gauges.
func (r registrar) gaugesByLabel(name, help, label string, values []string) map[string]prometheus.Gauge {
	vec := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{label})
	r.MustRegister(vec)
	set := map[string]prometheus.Gauge{event.Other: vec.WithLabelValues(event.Other)}
	for _, value := range values {
		set[value] = vec.WithLabelValues(value)
	}
	return set
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
	b := &Backend{connects: make(map[string]prometheus.Counter)}
	for _, result := range append([]string{event.Other}, event.Values("ConnectResult")...) {
		b.connects[result] = m.upstreamConnects.WithLabelValues(name, result)
	}
	return b
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

// ObserveCertificates exports the expiry of the certificates. Each scrape calls
// reportAll, which calls report for each certificate file.
func (m *Metrics) ObserveCertificates(reportAll func(report func(file string, notAfter time.Time))) {
	m.registry.MustRegister(certificateCollector{
		reportAll: reportAll,
		desc: prometheus.NewDesc("imapgate_certificate_not_after_timestamp_seconds",
			"When a certificate expires that is served, or presented to another server.", []string{"file"}, nil),
	})
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

// certificateCollector is a prometheus.Collector that queries the certificates at
// each scrape, because their files may be reloaded.
type certificateCollector struct {
	reportAll func(report func(file string, notAfter time.Time)) // Set once.
	desc      *prometheus.Desc                                   // Set once.
}

// Describe implements prometheus.Collector.
func (c certificateCollector) Describe(out chan<- *prometheus.Desc) { out <- c.desc }

// Collect implements prometheus.Collector. It reports a file that is named twice
// only once: duplicate series would fail the whole scrape.
func (c certificateCollector) Collect(out chan<- prometheus.Metric) {
	seen := make(map[string]bool)
	c.reportAll(func(file string, notAfter time.Time) {
		if !seen[file] {
			seen[file] = true
			out <- prometheus.MustNewConstMetric(c.desc, prometheus.GaugeValue, float64(notAfter.Unix()), file)
		}
	})
}
