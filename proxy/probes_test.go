package proxy

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"imapgate/internal/metrics"
)

// probing is what the health check of a balancer does: it connects, goes as far as it is
// told, and leaves.
type probing struct {
	listener, kind string
	does           func(*client)
}

// probings are the ways to look whether a gateway lives.
func probings() []probing {
	quits := func(c *client) { c.hear("* OK …"); c.say("a LOGOUT\r\n"); c.hear("* BYE …"); c.hear("a OK …") }
	local := v2(0x20, 0, "")
	return []probing{
		{"none", metrics.ProbeConnect, func(*client) {}},
		{"none", metrics.ProbeConnect, (*client).vanish},
		{"none", metrics.ProbeConnect, func(c *client) { c.hear("* OK …") }},
		{"none", metrics.ProbeIMAP, quits},
		{"none", metrics.ProbeIMAP, func(c *client) { c.hear("* OK …"); c.say("a CAPABILITY\r\n"); c.hear("* CAP…"); c.hear("a OK …") }},
		{"starttls", metrics.ProbeIMAP, func(c *client) {
			c.hear("* OK …")
			c.say("a STARTTLS\r\n")
			c.hear("a OK …")
			c.startTLS()
		}},
		{"starttls", metrics.ProbeIMAP, func(c *client) { c.hear("* OK …"); c.say("a STARTTLS\r\n"); c.hear("a OK …") }},
		{"implicit", metrics.ProbeConnect, func(*client) {}},
		{"implicit", metrics.ProbeConnect, (*client).vanish},
		{"implicit", metrics.ProbeTLS, (*client).startTLS},
		{"implicit", metrics.ProbeTLS, func(c *client) { c.startTLS(); c.hear("* OK …") }},
		{"implicit", metrics.ProbeIMAP, func(c *client) { c.startTLS(); quits(c) }},
		{"balanced-none", metrics.ProbeConnect, func(*client) {}},
		{"balanced-implicit", metrics.ProbeConnect, (*client).vanish},
		{"balanced-none", metrics.ProbeLocal, func(c *client) { c.say(local); c.hear("* OK …") }},
		{"balanced-none", metrics.ProbeLocal, func(c *client) { c.say("PROXY UNKNOWN\r\n"); quits(c) }},
		{"balanced-implicit", metrics.ProbeLocal, func(c *client) { c.say(local) }},
		{"balanced-implicit", metrics.ProbeLocal, func(c *client) { c.say(local); c.startTLS() }},
		{"trusting-none", metrics.ProbeConnect, func(*client) {}},
	}
}

func (p probing) trusted() bool { return strings.Contains(p.listener, "-") }

func TestProbesAreCounted(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	want := map[string]int{}
	for _, p := range probings() {
		c := b.dial(p.listener)
		p.does(c)
		c.close()
		want[fmt.Sprintf(`imapgate_probes_total{kind="%s",listener="%s"}`, p.kind, p.listener)]++
		within(t, "a probe of "+p.listener+" to count as "+p.kind, func() bool {
			counted := b.scrape()
			for name, n := range want {
				if !strings.Contains(counted, fmt.Sprintf("%s %d\n", name, n)) {
					return false
				}
			}
			return true
		})
	}
	b.end()
	if n := len(b.lines("probe")); n != 2 {
		t.Errorf("the log has %d lines about an address's probes", n)
	}
	records := 0
	for _, r := range b.records() {
		if strings.Contains(r.field("listener"), "-") {
			records++
		}
	}
	if records != 2 { // the first, and the count of the others, which is written when the log is closed
		t.Errorf("the audit log has %d records of an address's probes", records)
	}
	strangers := 0
	for _, p := range probings() {
		if !p.trusted() {
			strangers++
		}
	}
	lines := b.lines("connection refused")
	if len(lines) != strangers {
		t.Errorf("%d lines about %d connections of strangers", len(lines), strangers)
	}
	for _, r := range lines {
		if r.field("reason") == "" || r.field("address") != "127.0.0.1" || r["error"] == "" {
			t.Error(r)
		}
	}
}

// What is no more than a stranger who came through the balancer, and what goes wrong, has
// its record whoever it was.
func TestOtherConnectionsOfABalancerAreOnRecord(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	others := []func(*client){
		func(c *client) { c.say("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n"); c.hear("* OK …") }, // somebody else looked
		func(c *client) { c.say("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n") },
		func(c *client) { c.say("PROXY TC") },
		func(c *client) { c.say(v2(0x20, 0, "")); c.hear("* OK …"); c.say("a NOOP\r\n"); c.hear("a OK …") },
		func(c *client) { c.say(v2(0x20, 0, "")); c.hear("* OK …"); c.say("a LOGIN {5+}\r\nali") }, // cut off
		func(c *client) { c.say("GET / HTTP/1.0\r\n\r\n"); _, _ = io.ReadAll(c.r) },
		func(c *client) {
			c.say(v2(0x20, 0, ""))
			c.hear("* OK …")
			c.say("a NONSENSE\r\n")
			c.hear("a BAD …")
		},
		func(c *client) {
			c.say(v2(0x20, 0, ""))
			c.hear("* OK …")
			c.say("a LOGIN alice wrong\r\n")
			c.hear("a NO …")
		},
	}
	for i, does := range others {
		c := b.dial("balanced-none")
		does(c)
		c.close()
		if r := b.lastRecord("connection_refused", c); r.field("count") != "" {
			t.Errorf("%d: %v", i, r)
		}
	}
	if n := len(b.lines("probe")); n != 0 {
		t.Errorf("%d lines about probes", n)
	}
	if n := b.metrics()["imapgate_probes_total"]; n != 2 { // those behind the balancer, who said nothing
		t.Errorf("%v probes are counted", n)
	}
}
