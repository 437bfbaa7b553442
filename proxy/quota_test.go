package proxy

import (
	"strings"
	"testing"

	"imapgate/internal/limit"
	"imapgate/internal/testkit"
)

// What a quota throttles is recorded with the names of the limit and the user.
func TestThrottledSessionIsAudited(t *testing.T) {
	for name, b := range map[string]limit.Quotas{"bytes_in": {BytesInPerSecond: 200}, "bytes_out": {BytesOutPerSecond: 200}} {
		t.Run(name, func(t *testing.T) {
			bed := newHarness(t, openTestBackend(t).addr(), withLimits(limit.Config{Settings: limit.Settings{UserQuota: b}}))
			c := bed.dialGreetedFrom("192.0.2.1")
			c.write("a LOGIN frank right\r\n")
			c.expectLine("a OK …")
			c.write(strings.Repeat("b", 500) + " NOOP\r\n") // also counted for the response
			testkit.Eventually(t, name+" to be recorded", func() bool {
				for _, r := range bed.records() {
					if r.field("event") == "limit_hit" && r.field("limit") == name {
						return r.field("result") == "slowed" && r.field("subject") == "frank@example.org" && r.field("session") != "" && bed.metrics()["imapgate_limit_throttled_total"] > 0
					}
				}
				return false
			})
			c.close()
		})
	}
}

func TestBackendQueueTimeIsNotConnectTime(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) {
		east := s.backends["east"]
		east.MaxUpstreamConnectsPerSecond = 2 // half a second between two logins
		s.backends["east"] = east
	})
	first, second := b.dialGreetedFrom("192.0.2.1"), b.dialGreetedFrom("192.0.2.1")
	for _, c := range []*client{first, second} {
		c.write("a LOGIN frank right\r\n")
		c.expectLine("a OK …")
	}
	r := b.lastRecord("login_accepted", second)
	delay, _ := r["delay_ms"].(float64)
	took, _ := r["duration_ms"].(float64)
	if asked, _ := r["upstream_ms"].(float64); delay < 100 || took < delay+asked {
		t.Errorf("%v", r)
	}
	first.close()
	second.close()
}
