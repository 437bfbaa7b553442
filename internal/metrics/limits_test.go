package metrics_test

import (
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/metrics"
)

func TestEachLimitIsCountedUnderItsName(t *testing.T) {
	m := metrics.New("v")
	m.ObserveBans(func() int { return 2 })
	m.Limits.CountRefusal("user_connections")
	m.Limits.CountRefusal("made up")
	m.Limits.ObserveDelay(3 * time.Second)
	m.Limits.CountThrottle("bytes_out")
	m.Limits.CountThrottle("total")
	m.Limits.SprayDetections.Inc()
	got := scrape(t, m)
	for series, want := range map[string]string{
		`imapgate_limit_refusals_total{limit="user_connections"}`: "1",
		`imapgate_limit_refusals_total{limit="other"}`:            "1",
		`imapgate_limit_throttled_total{limit="bytes_out"}`:       "1",
		`imapgate_limit_throttled_total{limit="other"}`:           "1",
		`imapgate_login_delay_seconds_bucket{le="2"}`:             "0",
		`imapgate_login_delay_seconds_bucket{le="4"}`:             "1",
		`imapgate_bans`: "2",
		`imapgate_password_spray_detections_total`: "1",
	} {
		if got[series] != want {
			t.Errorf("%s is %q, want %q", series, got[series], want)
		}
	}
	for _, reason := range event.Values("Limit", "refusal") {
		if _, ok := got[`imapgate_limit_refusals_total{limit="`+reason+`"}`]; !ok {
			t.Errorf("%s has no series", reason)
		}
	}
}
