package tests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// BenchmarkAttachToTenThousandMessages is what an attach takes in a mailbox that
// has changed, to a connection that waits, beyond what the server takes for
// SELECT on a connection of its own.
func BenchmarkAttachToTenThousandMessages(b *testing.B) {
	backend := testbed.StartDovecot(b, testbed.DovecotConfig{Password: password})
	settings := muxSettings()
	settings.AlwaysDetach = true // every NOOP attaches
	g := startGateway(b, gatewayOptions{
		ca: backend.CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.ImplicitTLS)},
		modes: map[string]proxy.Mode{onlyBackend: {Name: string(mux.Resume), Mux: settings}},
	})
	own, through := openLarge(b, directEndpoint(backend)(b, "")), openLarge(b, g.endpoint(proxy.ImplicitTLS))
	storeMessages(b, own, 10_000)
	mustDo(b, through, "SELECT INBOX")
	var selects, attaches []time.Duration
	for b.Loop() {
		storeMessages(b, own, 1)
		began := time.Now()
		mustDo(b, own, "SELECT INBOX")
		selects = append(selects, time.Since(began))
		mustDo(b, own, "UNSELECT")
		began = time.Now()
		if got := mustDo(b, through, "NOOP"); !strings.Contains(got, "EXISTS") {
			b.Fatalf("an attach told nothing of the new message: %s", got)
		}
		attaches = append(attaches, time.Since(began))
	}
	b.ReportMetric(median(attaches).Seconds()*1e3-median(selects).Seconds()*1e3, "ms-beyond-select")
	b.ReportMetric(median(selects).Seconds()*1e3, "ms-select")
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

func openLarge(b *testing.B, e endpoint) *RawClient {
	b.Helper()
	c, err := Connect(e.address, e.tls)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close() }) // all answers were read
	if _, err := c.Read(); err != nil {
		b.Fatal(err)
	}
	mustDo(b, c, "LOGIN large "+password)
	return c
}

// storeMessages stores n messages with one APPEND (RFC 3502).
func storeMessages(b *testing.B, c *RawClient, n int) {
	b.Helper()
	var literals [][]byte
	for i := range n {
		literals = append(literals, messageOfSize(300, fmt.Sprint("number ", i)))
	}
	mustDo(b, c, "APPEND INBOX"+strings.Repeat(" {+}", n), literals...)
}

func mustDo(b *testing.B, c *RawClient, command string, literals ...[]byte) string {
	b.Helper()
	got, err := c.Do(command, literals...)
	if err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
		b.Fatalf("%.40s: %v, %v", command, got, err)
	}
	return fmt.Sprint(got)
}
