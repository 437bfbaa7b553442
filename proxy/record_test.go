package proxy

import (
	"testing"

	"imapgate/internal/audit"
)

func TestRecordOfALoginSaysHowTheBackendAnsweredAndWhichAttemptItWas(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr())
	c := b.greeted("none")
	c.say("a LOGIN alice wrong\r\n")
	c.hear("a " + deniedReply)
	c.say("b LOGIN alice right\r\n")
	c.hear("b OK …")
	for event, want := range map[string]map[string]string{
		"login_refused":  {"attempt": "1", "upstream": "denied", "result": "refused", "reason": string(audit.BadCredentials)},
		"login_accepted": {"attempt": "2", "upstream": "ok", "result": "accepted", "backend": "east", "method": "passthrough"},
	} {
		r := b.lastRecord(event, c)
		for key, value := range want {
			if r.field(key) != value {
				t.Errorf("%s: %s is %q, want %q", event, key, r.field(key), value)
			}
		}
		if r.field("upstream_ms") == "" {
			t.Errorf("%s does not say how long the backend took", event)
		}
	}
	m.close()
	d := b.greeted("none")
	d.say("a LOGIN alice right\r\n")
	d.hear("a " + unavailableReply)
	if r := b.lastRecord("login_refused", d); r.field("upstream") != "unreachable" || r.field("result") != "unavailable" {
		t.Error(r)
	}
}
