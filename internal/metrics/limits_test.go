package metrics_test

import (
	"strings"
	"testing"
	"time"

	"imapgate/internal/metrics"
)

func TestWhatALimitDoesIsCountedUnderItsName(t *testing.T) {
	m := metrics.New("v")
	m.Limits.Refused("user")
	m.Limits.Refused("made up")
	m.Limits.Delayed(3 * time.Second)
	m.Limits.Bans.Set(2)
	m.Limits.Sprays.Inc()
	got := scrape(t, m)
	for _, want := range []string{
		`imapgate_limit_refusals_total{limit="user"} 1`, `imapgate_limit_refusals_total{limit="banned"} 0`,
		`imapgate_limit_refusals_total{limit="other"} 1`, `imapgate_login_delay_seconds_bucket{le="2"} 0`,
		`imapgate_login_delay_seconds_bucket{le="4"} 1`, `imapgate_bans 2`, `imapgate_spray_suspected_total 1`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("%s is missing", want)
		}
	}
}
