package proxy

import (
	"testing"

	"imapgate/internal/event"
)

func TestLoginRecordHasUpstreamResultAndAttempt(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	c := b.dialGreeted("none")
	c.write("a LOGIN alice wrong\r\n")
	c.expectLine("a " + authFailedReply)
	c.write("b LOGIN alice right\r\n")
	c.expectLine("b OK …")
	for event, want := range map[string]map[string]string{
		"login_refused":  {"attempt": "1", "upstream": "denied", "result": "refused", "reason": string(event.BadCredentials)},
		"login_accepted": {"attempt": "2", "upstream": "ok", "result": "accepted", "backend": "east", "method": "passthrough"},
	} {
		r := b.lastRecord(event, c)
		for key, value := range want {
			if r.field(key) != value {
				t.Errorf("%s: %s is %q, want %q", event, key, r.field(key), value)
			}
		}
		if r.field("upstream_ms") == "" {
			t.Errorf("%s has no backend time", event)
		}
	}
	m.Close()
	d := b.dialGreeted("none")
	d.write("a LOGIN alice right\r\n")
	d.expectLine("a " + unavailableReply)
	if r := b.lastRecord("login_refused", d); r.field("upstream") != "unreachable" || r.field("result") != "unavailable" {
		t.Error(r)
	}
}
