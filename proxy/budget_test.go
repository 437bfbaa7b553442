package proxy

import (
	"strings"
	"testing"

	"imapgate/internal/limit"
)

// What a budget holds up is on record, under the name of its limit and of the user.
func TestABudgetThatHoldsASessionUpIsOnRecord(t *testing.T) {
	for name, b := range map[string]limit.Budgets{"bytes_in": {In: 200}, "bytes_out": {Out: 200}} {
		t.Run(name, func(t *testing.T) {
			bed := newBed(t, openMailbox(t).addr(), limited(limit.Config{Budgets: b}))
			c := bed.in("192.0.2.1")
			c.say("a LOGIN frank right\r\n")
			c.hear("a OK …")
			c.say(strings.Repeat("b", 500) + " NOOP\r\n") // which the answer has too
			within(t, name+" to be on record", func() bool {
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

func TestAWaitForTheBackendsLimitIsNotTheBackends(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) {
		east := s.backends["east"]
		east.LoginRate = 2 // half a second between two
		s.backends["east"] = east
	})
	first, second := b.in("192.0.2.1"), b.in("192.0.2.1")
	for _, c := range []*client{first, second} {
		c.say("a LOGIN frank right\r\n")
		c.hear("a OK …")
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
