package tests

import (
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// What a login at the backend costs, twenty returning users are spared.
const (
	minSpeedup  = 8    // times the logins a second of going direct
	maxCPUShare = 0.05 // of the backend's CPU for a login
)

// Twenty users log in, open INBOX and log out, over and over: directly, by a
// gateway that keeps their connections, and by it without TLS in front, as
// webmail on the same machine does. At full size the bars hold; in the
// small only the numbers are shown, since others may need the machine.
func TestReturningUsersReuseBackendLogins(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	g := startMuxGateway(t, mux.Reuse, gatewayOptions{
		ca: backend.CA, backends: map[string]upstream.Config{onlyBackend: upstreamConfig(backend, upstream.ImplicitTLS)},
	})
	ways := []endpoint{directEndpoint(backend)(t, ""), g.endpoint(proxy.ImplicitTLS), g.endpoint(proxy.NoTLS)}
	rates, costs := make([]float64, len(ways)), make([]time.Duration, len(ways))
	n := testSize(100, 2_000)
	for i, e := range ways {
		if e.tls != nil { // those who return resume (RFC 8446 §2.2)
			e.tls = e.tls.Clone()
			e.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		}
		if err := runReturningSessions(e, 20); err != nil { // INBOX is made; connections wait
			t.Fatal(err)
		}
		before, began := groupCPU(t, backend), time.Now()
		if err := runReturningSessions(e, n); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		rates[i] = float64(n) / took.Seconds()
		costs[i] = (groupCPU(t, backend) - before) / time.Duration(n)
		faster, share := rates[i]/rates[0], float64(costs[i])/float64(costs[0])
		t.Logf("%s: %d logins, %.0f a second (%.1f times), %v of the backend's CPU each (%.1f %%)",
			[]string{"directly", "by the gateway", "by the gateway, beside it"}[i], n, rates[i], faster, costs[i], 100*share)
		if os.Getenv(soakEnv) != "1" || i == 0 {
			continue
		}
		// Where there is TLS in front, most of a login is its handshake, and half of
		// that is this process's own: what it says is how fast clients are.
		if share > maxCPUShare || e.tls == nil && faster < minSpeedup {
			t.Errorf("want %d times, %.0f %%", minSpeedup, 100*maxCPUShare)
		}
	}
}

// runReturningSessions makes n sessions of twenty users, four at a time.
func runReturningSessions(e endpoint, n int) error {
	var all errgroup.Group
	all.SetLimit(4)
	for i := range n {
		all.Go(func() error {
			p, err := dialLight(e, fmt.Sprintf("127.6.0.%d", 1+i%250))
			if err != nil {
				return err
			}
			defer p.conn.Close() // it has logged out
			for _, command := range []string{fmt.Sprintf("LOGIN user%d %s", i%20, password), "SELECT INBOX", "LOGOUT"} {
				if err := p.exec(command); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return all.Wait()
}

// clockTick is the unit of times in /proc: a hundredth of a second wherever Linux runs.
const clockTick = 10 * time.Millisecond

// groupCPU is the CPU time of all processes of a backend, those that have ended
// included: their parent has waited for them.
func groupCPU(t *testing.T, backend *testbed.Dovecot) (sum time.Duration) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// proc(5): behind the name, field 3 is the state, 5 the group, 14 and 15 its
		// own time, 16 and 17 that of its children.
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if fields[2] != strconv.Itoa(backend.PID()) {
			continue
		}
		for _, field := range fields[11:15] {
			ticks, err := strconv.Atoi(field)
			if err != nil {
				t.Fatal(err)
			}
			sum += time.Duration(ticks) * clockTick
		}
	}
	return sum
}
