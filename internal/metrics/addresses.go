package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"imapgate/internal/event"
)

// AddressStatus is the state of an address of a backend.
type AddressStatus struct {
	Backend, Address string
	State            event.AddressState
	Connections      int
	CheckLatency     time.Duration // of the last health check; 0: none
}

// ObserveAddresses exports the states of the backends' addresses. Each scrape calls reportAll,
// which calls report for each address, once.
func (m *Metrics) ObserveAddresses(reportAll func(report func(AddressStatus))) {
	labels := []string{"backend", "address"}
	backendUp := prometheus.NewDesc("imapgate_backend_up", "1 while an address of the backend is up.", labels[:1], nil)
	state := prometheus.NewDesc("imapgate_address_state", "1 for the state that an address of a backend is in.", append(labels, "state"), nil)
	connections := prometheus.NewDesc("imapgate_address_connections", "Open connections to an address of a backend, idle ones included.", labels, nil)
	check := prometheus.NewDesc("imapgate_health_check_seconds", "Duration of the last health check of an address.", labels, nil)
	m.registry.MustRegister(collector{[]*prometheus.Desc{backendUp, state, connections, check}, func(out chan<- prometheus.Metric) {
		gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
			out <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
		}
		isUp := make(map[string]bool)
		reportAll(func(a AddressStatus) {
			isUp[a.Backend] = isUp[a.Backend] || a.State == event.AddressUp
			for _, s := range event.Values("AddressState") {
				gauge(state, oneIf(s == string(a.State)), a.Backend, a.Address, s)
			}
			gauge(connections, float64(a.Connections), a.Backend, a.Address)
			if a.CheckLatency > 0 {
				gauge(check, a.CheckLatency.Seconds(), a.Backend, a.Address)
			}
		})
		for backend, up := range isUp {
			gauge(backendUp, oneIf(up), backend)
		}
	}})
}
