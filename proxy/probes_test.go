package proxy

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// healthCheck is a balancer's health check: it connects, takes some steps and closes.
type healthCheck struct {
	listener string
	probe    event.Probe
	run      func(*client)
}

// healthChecks returns the ways to check a gateway.
func healthChecks() []healthCheck {
	quits := func(c *client) {
		c.expectLine("* OK …")
		c.write("a LOGOUT\r\n")
		c.expectLine("* BYE …")
		c.expectLine("a OK …")
	}
	local := proxyV2(0x20, 0, "")
	return []healthCheck{
		{"none", event.ProbeConnect, func(*client) {}},
		{"none", event.ProbeConnect, (*client).reset},
		{"none", event.ProbeConnect, func(c *client) { c.expectLine("* OK …") }},
		{"none", event.ProbeIMAP, quits},
		{"none", event.ProbeIMAP, func(c *client) {
			c.expectLine("* OK …")
			c.write("a CAPABILITY\r\n")
			c.expectLine("* CAP…")
			c.expectLine("a OK …")
		}},
		{"starttls", event.ProbeIMAP, func(c *client) {
			c.expectLine("* OK …")
			c.write("a STARTTLS\r\n")
			c.expectLine("a OK …")
			c.startTLS()
		}},
		{"starttls", event.ProbeIMAP, func(c *client) { c.expectLine("* OK …"); c.write("a STARTTLS\r\n"); c.expectLine("a OK …") }},
		{"implicit", event.ProbeConnect, func(*client) {}},
		{"implicit", event.ProbeConnect, (*client).reset},
		{"implicit", event.ProbeTLS, (*client).startTLS},
		{"implicit", event.ProbeTLS, func(c *client) { c.startTLS(); c.expectLine("* OK …") }},
		{"implicit", event.ProbeIMAP, func(c *client) { c.startTLS(); quits(c) }},
		{"balanced-none", event.ProbeConnect, func(*client) {}},
		{"balanced-implicit", event.ProbeConnect, (*client).reset},
		{"balanced-none", event.ProbeLocal, func(c *client) { c.write(local); c.expectLine("* OK …") }},
		{"balanced-none", event.ProbeLocal, func(c *client) { c.write("PROXY UNKNOWN\r\n"); quits(c) }},
		{"balanced-implicit", event.ProbeLocal, func(c *client) { c.write(local) }},
		{"balanced-implicit", event.ProbeLocal, func(c *client) { c.write(local); c.startTLS() }},
		{"trusting-none", event.ProbeConnect, func(*client) {}},
	}
}

func (p healthCheck) isTrusted() bool { return strings.Contains(p.listener, "-") }

func TestProbesAreCounted(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	want := map[string]int{}
	for _, p := range healthChecks() {
		c := b.dial(p.listener)
		p.run(c)
		c.close()
		want[fmt.Sprintf(`imapgate_probes_total{kind="%s",listener="%s"}`, p.probe, p.listener)]++
		testkit.Eventually(t, "a probe of "+p.listener+" to count as "+string(p.probe), func() bool {
			counted := b.metricsText()
			for name, n := range want {
				if !strings.Contains(counted, fmt.Sprintf("%s %d\n", name, n)) {
					return false
				}
			}
			return true
		})
	}
	b.stopServer()
	if n := len(b.logLines("probe")); n != 2 {
		t.Errorf("the log has %d lines about an address's probes", n)
	}
	records := 0
	for _, r := range b.records() {
		if strings.Contains(r.field("listener"), "-") {
			records++
		}
	}
	if records != 2 { // the first, and the summary of the others, which is written when the log is closed
		t.Errorf("the audit log has %d records of an address's probes", records)
	}
	clients := 0
	for _, p := range healthChecks() {
		if !p.isTrusted() {
			clients++
		}
	}
	lines := b.logLines("connection refused")
	if len(lines) != clients {
		t.Errorf("%d lines about %d connections of clients", len(lines), clients)
	}
	for _, r := range lines {
		if r.field("reason") == "" || r.field("address") != "127.0.0.1" || r["error"] == "" {
			t.Error(r)
		}
	}
}

// Connections of clients through the balancer, and those that go wrong, are recorded in
// full.
func TestNonProbeBalancerConnectionsAreAudited(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	others := []func(*client){
		func(c *client) { c.write("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n"); c.expectLine("* OK …") }, // a client through the balancer
		func(c *client) { c.write("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n") },
		func(c *client) { c.write("PROXY TC") },
		func(c *client) {
			c.write(proxyV2(0x20, 0, ""))
			c.expectLine("* OK …")
			c.write("a NOOP\r\n")
			c.expectLine("a OK …")
		},
		func(c *client) {
			c.write(proxyV2(0x20, 0, ""))
			c.expectLine("* OK …")
			c.write("a LOGIN {5+}\r\nali")
		}, // cut off
		func(c *client) { c.write("GET / HTTP/1.0\r\n\r\n"); _, _ = io.ReadAll(c.r) },
		func(c *client) {
			c.write(proxyV2(0x20, 0, ""))
			c.expectLine("* OK …")
			c.write("a NONSENSE\r\n")
			c.expectLine("a BAD …")
		},
		func(c *client) {
			c.write(proxyV2(0x20, 0, ""))
			c.expectLine("* OK …")
			c.write("a LOGIN alice wrong\r\n")
			c.expectLine("a NO …")
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
	if n := len(b.logLines("probe")); n != 0 {
		t.Errorf("%d lines about probes", n)
	}
	if n := b.metrics()["imapgate_probes_total"]; n != 2 { // clients through the balancer that sent nothing
		t.Errorf("%v probes are counted", n)
	}
}
