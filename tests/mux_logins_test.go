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

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// Targets for returning users, compared with direct logins at the backend.
const (
	minSpeedup  = 8    // of logins per second
	maxCPUShare = 0.05 // of the backend's CPU time per login
)

// Twenty users repeatedly log in, open INBOX and log out: directly, through a gateway that
// pools their upstreams, and through it without TLS, as webmail on the same machine does.
// At full size the targets must be met. Otherwise the test only logs the numbers, because
// the machine may be busy.
func TestReturningUsersReuseBackendLogins(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, LoginsPerProcess: 1}) // Dovecot's default
	g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.ImplicitTLS)+muxMode(event.ModeReuse, "")))
	ways := []endpoint{directEndpoint(backend)(t, ""), g.endpoint(event.ImplicitTLS), g.endpoint(event.NoTLS)}
	rates, costs := make([]float64, len(ways)), make([]time.Duration, len(ways))
	n := testSize(100, 2_000)
	for i, e := range ways {
		if e.tls != nil { // returning clients resume TLS (RFC 8446 §2.2)
			e.tls = e.tls.Clone()
			e.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
		}
		if err := runReturningSessions(e, 20); err != nil { // creates INBOX and fills the pool
			t.Fatal(err)
		}
		before, start := groupCPU(t, backend), time.Now()
		if err := runReturningSessions(e, n); err != nil {
			t.Fatal(err)
		}
		elapsed := time.Since(start)
		rates[i] = float64(n) / elapsed.Seconds()
		costs[i] = (groupCPU(t, backend) - before) / time.Duration(n)
		faster, share := rates[i]/rates[0], float64(costs[i])/float64(costs[0])
		t.Logf("%s: %d logins, %.0f a second (%.1f times), %v of the backend's CPU each (%.1f %%)",
			[]string{"directly", "by the gateway", "by the gateway, beside it"}[i], n, rates[i], faster, costs[i], 100*share)
		if os.Getenv(soakEnv) != "1" || i == 0 {
			continue
		}
		// With TLS, most of a login is the handshake, half of it in the test's own clients,
		// so the speed-up is not checked.
		if share > maxCPUShare || e.tls == nil && faster < minSpeedup {
			t.Errorf("want %d times, %.0f %%", minSpeedup, 100*maxCPUShare)
		}
	}
}

// runReturningSessions runs n sessions of twenty users, four at a time.
func runReturningSessions(e endpoint, n int) error {
	var all errgroup.Group
	all.SetLimit(4)
	for i := range n {
		all.Go(func() error {
			p, err := dialLight(e, fmt.Sprintf("127.6.0.%d", 1+i%250))
			if err != nil {
				return err
			}
			defer p.conn.Close() // logged out
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

// clockTick is the unit of times in /proc, always 10 ms on Linux.
const clockTick = 10 * time.Millisecond

// groupCPU returns the CPU time of all processes of a backend. It includes exited processes,
// because their parent has waited for them.
func groupCPU(t *testing.T, backend *testbed.Dovecot) (sum time.Duration) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has exited
		}
		// proc(5): after the name, field 3 is the state, 5 the group, 14 and 15 the process's
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
