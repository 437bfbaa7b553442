package metrics_test

import (
	"errors"
	"fmt"
	"io"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

// scrape returns the series, by name{labels}.
func scrape(t *testing.T, m *metrics.Metrics) map[string]string {
	t.Helper()
	answer := httptest.NewRecorder()
	m.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.Code != 200 {
		t.Fatalf("status %d, %v: %s", answer.Code, err, text)
	}
	series := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			series[line[:i]] = strings.TrimSpace(line[i+1:])
		}
	}
	return series
}

func TestEachEventIsCountedInItsSeries(t *testing.T) {
	m := metrics.New("v1.2.3")
	m.Connections("0.0.0.0:993").Add(3)
	m.PreauthConnections.Inc()
	m.ObserveParked(func() float64 { return 7 })
	m.BytesToClient.Add(1 << 40)
	m.BytesToBackend.Add(5)
	m.RouteInvalidationConnected.Set(1)
	m.RoutesEmptied.Set(1)
	m.BeginSession("splice")
	m.BeginSession("splice")
	m.EndSession("splice", "client_closed")
	m.CountLogin(event.ResultAccepted, "AUTH=PLAIN", 30*time.Millisecond)
	m.Backend("east").CountConnect("ok")
	m.CountRouteLookup("redis")
	m.CountHandshake(event.ResultResumed)
	m.CountReload(nil)
	m.CountReload(errors.New("no"))
	m.ObserveCertificates(func(report func(string, time.Time)) {
		report("/mail.pem", time.Unix(1e9, 0))
		report("/mail.pem", time.Unix(2e9, 0)) // reported twice: must not break the scrape
	})
	ready := errors.New("full")
	m.ObserveAudit(func() uint64 { return 9 }, func() error { return ready })
	got := scrape(t, m)
	for series, want := range map[string]string{
		`imapgate_connections_total{listener="0.0.0.0:993"}`:                 "3",
		`imapgate_preauth_connections`:                                       "1",
		`imapgate_parked_sessions`:                                           "7",
		`imapgate_bytes_total{direction="to_client"}`:                        "1.099511627776e+12",
		`imapgate_bytes_total{direction="to_backend"}`:                       "5",
		`imapgate_route_invalidation_connected`:                              "1",
		`imapgate_routes_emptied`:                                            "1",
		`imapgate_sessions{mode="splice"}`:                                   "1",
		`imapgate_session_ends_total{reason="client_closed"}`:                "1",
		`imapgate_logins_total{mechanism="AUTH=PLAIN",result="accepted"}`:    "1",
		`imapgate_login_seconds_bucket{result="accepted",le="0.025"}`:        "0",
		`imapgate_login_seconds_bucket{result="accepted",le="0.05"}`:         "1",
		`imapgate_upstream_connects_total{backend="east",result="ok"}`:       "1",
		`imapgate_upstream_connects_total{backend="east",result="denied"}`:   "0",
		`imapgate_route_lookups_total{source="redis"}`:                       "1",
		`imapgate_tls_handshakes_total{result="resumed"}`:                    "1",
		`imapgate_config_reloads_total{result="ok"}`:                         "1",
		`imapgate_config_reloads_total{result="refused"}`:                    "1",
		`imapgate_config_reload_success`:                                     "0",
		`imapgate_certificate_not_after_timestamp_seconds{file="/mail.pem"}`: "1e+09",
		`imapgate_audit_lost_records_total`:                                  "9",
		`imapgate_audit_ready`:                                               "0",
		`imapgate_identity_violations_total`:                                 "0",
	} {
		if got[series] != want {
			t.Errorf("%s is %q, want %q", series, got[series], want)
		}
	}
	for name, want := range map[string]bool{"imapgate_build_info": true, "go_goroutines": true, "process_open_fds": true} {
		found := false
		for series := range got {
			found = found || strings.HasPrefix(series, name)
		}
		if found != want {
			t.Errorf("%s is missing", name)
		}
	}
}

func TestUnknownValuesCountAsOther(t *testing.T) {
	m := metrics.New("v")
	b := m.Backend("east")
	before := len(scrape(t, m))
	for i := range 1000 {
		unknown := fmt.Sprintf("made up %d", i)
		m.BeginSession(event.Mode(unknown))
		m.EndSession(event.Mode(unknown), event.Reason(unknown))
		m.CountLogin(event.Result(unknown), unknown, 0)
		m.CountLogin(event.ResultRefused, unknown, 0)
		m.CountRouteLookup(event.Origin(unknown))
		m.CountHandshake(event.Result(unknown))
		b.CountConnect(event.ConnectResult(unknown))
	}
	got := scrape(t, m)
	if len(got) != before {
		t.Errorf("%d series became %d", before, len(got))
	}
	if n := got[`imapgate_logins_total{mechanism="other",result="refused"}`]; n != "1000" {
		t.Errorf("other mechanisms: %s", n)
	}
	if n := got[`imapgate_session_ends_total{reason="other"}`]; n != "1000" {
		t.Errorf("other reasons: %s", n)
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	m := metrics.New("v")
	b := m.Backend("east")
	if n := testing.AllocsPerRun(100, func() {
		m.BeginSession("splice")
		m.CountLogin(event.ResultAccepted, "LOGIN", time.Millisecond)
		m.CountRouteLookup("cache")
		m.CountHandshake(event.ResultOK)
		b.CountConnect("ok")
		m.BytesToClient.Add(100)
		m.EndSession("splice", "idle")
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestScrapesMayRunDuringCounting(t *testing.T) {
	m := metrics.New("v")
	var both sync.WaitGroup
	both.Go(func() {
		for range 1000 {
			m.BeginSession("park")
			m.EndSession("park", event.Drained)
		}
	})
	both.Go(func() {
		for range 10 {
			scrape(t, m)
		}
	})
	both.Wait()
	if n := scrape(t, m)[`imapgate_sessions{mode="park"}`]; n != "0" {
		t.Errorf("%s sessions are left", n)
	}
}

// Each word counts under its own name where its tags say so.
func TestEveryWordOfTheEventTableIsALabel(t *testing.T) {
	m := metrics.New("v")
	b := m.Backend("east")
	for _, r := range event.Values("ConnectResult") {
		b.CountConnect(event.ConnectResult(r))
	}
	for _, r := range event.Values("Origin") {
		m.CountRouteLookup(event.Origin(r))
	}
	for _, r := range event.Values("Reason", "session") {
		m.EndSession(event.ModeSplice, event.Reason(r))
	}
	for _, r := range event.Values("Reason", "bye") {
		m.Mux.CountTermination(event.Reason(r))
	}
	for _, r := range event.Values("Result", "handshake") {
		m.CountHandshake(event.Result(r))
	}
	for _, mode := range event.Values("Mode") {
		m.BeginSession(event.Mode(mode))
	}
	for _, reason := range event.Values("ReattachReason") {
		for _, result := range event.Values("Result", "reattach") {
			m.Mux.CountReattach(event.ReattachReason(reason), event.Result(result), 0)
		}
	}
	for _, reason := range event.Values("PinReason") {
		m.Mux.CountPin(event.PinReason(reason))
	}
	for _, mechanism := range []string{auth.CommandLogin, auth.SASLPlain, auth.SASLLogin} {
		m.CountLogin(event.ResultAccepted, mechanism, 0)
	}
	for series, n := range scrape(t, m) {
		if strings.Contains(series, `"other"`) && n != "0" {
			t.Errorf("%s is %s", series, n)
		}
	}
}
