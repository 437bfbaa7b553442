package tests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// BenchmarkAttachToTenThousandMessages measures an attach to a pooled upstream in a changed
// mailbox, compared with a SELECT on a direct connection.
func BenchmarkAttachToTenThousandMessages(b *testing.B) {
	backend := testbed.StartDovecot(b, testbed.DovecotConfig{Password: password})
	// Every NOOP attaches.
	g := startTunedGateway(b, backend.CA, alwaysDetach, singleBackend(backendConf(backend, event.ImplicitTLS)+muxMode(event.ModeResume, "")))
	own, through := openLarge(b, directEndpoint(backend)(b, "")), openLarge(b, g.endpoint(event.ImplicitTLS))
	storeMessages(b, own, 10_000)
	mustDo(b, through, "SELECT INBOX")
	var selects, attaches []time.Duration
	for b.Loop() {
		storeMessages(b, own, 1)
		start := time.Now()
		mustDo(b, own, "SELECT INBOX")
		selects = append(selects, time.Since(start))
		mustDo(b, own, "UNSELECT")
		start = time.Now()
		if got := mustDo(b, through, "NOOP"); !strings.Contains(got, "EXISTS") {
			b.Fatalf("an attach did not report the new message: %s", got)
		}
		attaches = append(attaches, time.Since(start))
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
	b.Cleanup(func() { _ = c.Close() }) // all responses were read
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
