package metrics_test

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

func TestAddressesAreExported(t *testing.T) {
	m := metrics.New("v1.2.3")
	m.ObserveAddresses(func(report func(metrics.AddressStatus)) {
		report(metrics.AddressStatus{Backend: "east", Address: "a:1", State: event.AddressDown, Connections: 3, CheckLatency: time.Second / 2})
		report(metrics.AddressStatus{Backend: "east", Address: "b:1", State: event.AddressUp})
		report(metrics.AddressStatus{Backend: "west", Address: "a:1", State: event.AddressDraining})
	})
	got := scrape(t, m)
	for series, want := range map[string]string{
		`imapgate_backend_up{backend="east"}`:                                   "1",
		`imapgate_backend_up{backend="west"}`:                                   "0",
		`imapgate_address_state{address="a:1",backend="east",state="down"}`:     "1",
		`imapgate_address_state{address="a:1",backend="east",state="up"}`:       "0",
		`imapgate_address_state{address="b:1",backend="east",state="up"}`:       "1",
		`imapgate_address_state{address="a:1",backend="west",state="draining"}`: "1",
		`imapgate_address_state{address="a:1",backend="west",state="disabled"}`: "0",
		`imapgate_address_connections{address="a:1",backend="east"}`:            "3",
		`imapgate_health_check_seconds{address="a:1",backend="east"}`:           "0.5",
		`imapgate_health_check_seconds{address="b:1",backend="east"}`:           "", // never checked
	} {
		if got[series] != want {
			t.Errorf("%s is %q, want %q", series, got[series], want)
		}
	}
	for series := range got {
		if strings.HasPrefix(series, "imapgate_address_state") && strings.Contains(series, `state="other"`) {
			t.Error(series)
		}
	}
}
