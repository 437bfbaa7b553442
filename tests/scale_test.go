package tests

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// soakEnv is the environment variable that, set to 1, runs the long tests at full size:
//
//	IMAPGATE_SOAK=1 go test -timeout 40m -run 'Leaves|IdleSessions|LoginsAt|InAStorm' -v ./tests
//
// They need two idle cores and 20,000 descriptors per process.
const soakEnv = "IMAPGATE_SOAK"

// testSize returns the size of a test: short by default, full with soakEnv.
func testSize(short, full int) int {
	if os.Getenv(soakEnv) == "1" {
		return full
	}
	return short
}

// lightClient is a client with little memory, for tests with thousands of them.
type lightClient struct {
	// Owned by one goroutine at a time.
	conn net.Conn
	r    *bufio.Reader
}

// dialLight connects and reads the greeting.
func dialLight(e endpoint, from string) (*lightClient, error) {
	d := net.Dialer{Timeout: Timeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	conn, err := d.Dial("tcp", e.address)
	if err != nil {
		return nil, err
	}
	if e.tls != nil {
		conn = tls.Client(conn, e.tls)
	}
	p := &lightClient{conn: conn, r: bufio.NewReaderSize(conn, 512)}
	if greeting, err := p.readLine(); err != nil || !strings.HasPrefix(greeting, "* OK ") {
		return nil, errors.Join(fmt.Errorf("greeting %q: %w", greeting, err), conn.Close())
	}
	return p, nil
}

func (p *lightClient) readLine() (string, error) {
	if err := p.extendDeadline(); err != nil {
		return "", err
	}
	return p.r.ReadString('\n')
}

// extendDeadline sets the deadline of the next write and read. A TLS connection is unusable
// after a write time-out.
func (p *lightClient) extendDeadline() error { return p.conn.SetDeadline(time.Now().Add(Timeout)) }

// exec sends a command and returns an error unless it is answered OK.
func (p *lightClient) exec(command string) error {
	if err := p.extendDeadline(); err != nil {
		return err
	}
	if _, err := io.WriteString(p.conn, "t "+command+"\r\n"); err != nil {
		return err
	}
	for {
		line, err := p.readLine()
		if err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		if strings.HasPrefix(line, "t ") {
			if !strings.HasPrefix(line, "t OK ") {
				return fmt.Errorf("%s: %s", command, line)
			}
			return nil
		}
	}
}

// abort resets the connection.
func (p *lightClient) abort() {
	conn := p.conn
	if tlsConn, ok := conn.(*tls.Conn); ok {
		conn = tlsConn.NetConn()
	}
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// sessionKinds are kinds of connections, by how they begin and end.
var sessionKinds = []func(e endpoint, from, user string) error{
	newSessionKind(func(p *lightClient, login string) error {
		return errors.Join(p.exec(login), p.exec("NOOP"), p.exec("LOGOUT"))
	}),
	newSessionKind(func(p *lightClient, login string) error { return p.exec(login) }), // then a close without LOGOUT
	newSessionKind(func(p *lightClient, login string) error {
		err := p.exec(login)
		p.abort()
		return err
	}),
	newSessionKind(func(p *lightClient, login string) error { // closes during the login
		_, err := io.WriteString(p.conn, "t "+login+"\r\n")
		p.abort()
		return err
	}),
	newSessionKind(func(p *lightClient, login string) error {
		_, err := io.WriteString(p.conn, login[:len(login)/2])
		return err
	}),
	newSessionKind(func(p *lightClient, _ string) error { return p.exec("LOGOUT") }),
	func(e endpoint, from, _ string) error { // without a TLS handshake
		conn, err := (&net.Dialer{Timeout: Timeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).Dial("tcp", e.address)
		if err != nil {
			return err
		}
		_, _ = io.WriteString(conn, "\x16\x03\x01\x02\x00\x01")
		return conn.Close()
	},
}

func newSessionKind(run func(p *lightClient, login string) error) func(e endpoint, from, user string) error {
	return func(e endpoint, from, user string) error {
		p, err := dialLight(e, from)
		if err != nil {
			return err
		}
		defer p.conn.Close() // in any state
		return run(p, "LOGIN "+user+" "+password)
	}
}

// Connections of every kind leave no goroutines or descriptors.
func TestGatewayLeavesNoGoroutinesOrDescriptors(t *testing.T) {
	n := testSize(1_000, 100_000)
	ca := testbed.NewCA(t)
	secured, plain := startStubConfig(t, ca, event.ImplicitTLS), startStubConfig(t, ca, event.NoTLS)
	var endpoints []endpoint
	for _, v := range []struct {
		backend  string
		listener event.TLSMode
	}{{secured, event.ImplicitTLS}, {plain, event.NoTLS}, {plain, event.NoTLS}, {secured, event.NoTLS}} {
		g := startGateway(t, ca, singleBackend(v.backend))
		endpoints = append(endpoints, g.endpoint(v.listener))
	}
	seed := testbed.Seed(t)
	if err := runMixedSessions(endpoints, 200, seed); err != nil { // fills pools and caches
		t.Fatal(err)
	}
	before := awaitStableUse(t, func() bool { return true })

	if err := runMixedSessions(endpoints, n, seed+1); err != nil {
		t.Error(err)
	}
	after := awaitStableUse(t, func() bool { return measureUse().isAtMost(before) })
	t.Logf("%d connections; before: %v; after: %v", n, before, after)
	if !after.isAtMost(before) {
		stacks := make([]byte, 1<<20)
		t.Errorf("something is left of %d connections; before: %v; after: %v\n%s", n, before, after,
			stacks[:runtime.Stack(stacks, true)])
	}
}

// startStubConfig starts a stub and returns its backend settings.
func startStubConfig(t testing.TB, ca *testbed.CA, mode event.TLSMode) string {
	t.Helper()
	if mode == event.NoTLS {
		return plainBackend(startStub(t, nil).Addr())
	}
	cert, key := ca.Issue(t, testbed.DovecotName)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	s := startStub(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	return backendConfAt(s.Addr(), mode, ca)
}

// runMixedSessions runs n connections, sixteen at a time, from many addresses.
func runMixedSessions(endpoints []endpoint, n int, seed uint64) error {
	var next atomic.Int64
	var workers errgroup.Group
	for range 16 {
		workers.Go(func() error {
			for {
				i := int(next.Add(1))
				if i > n {
					return nil
				}
				random := rand.New(rand.NewPCG(seed, uint64(i)))
				from := fmt.Sprintf("127.7.%d.%d", i>>8&0xff, 1+i%250)
				kind := random.IntN(len(sessionKinds))
				if err := sessionKinds[kind](endpoints[random.IntN(len(endpoints))], from, fmt.Sprint("user", i)); err != nil {
					return fmt.Errorf("connection %d, of kind %d: %w", i, kind, err)
				}
			}
		})
	}
	return workers.Wait()
}

// resourceUse counts the resources of a process.
type resourceUse struct{ goroutines, descriptors int }

func (l resourceUse) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors", l.goroutines, l.descriptors)
}

func (l resourceUse) isAtMost(o resourceUse) bool {
	return l.goroutines <= o.goroutines && l.descriptors <= o.descriptors
}

func measureUse() resourceUse {
	runtime.GC() // closes the runtime's pipes for splice(2)
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		names = nil // not Linux: count goroutines only
	}
	return resourceUse{runtime.NumGoroutine(), len(names)}
}

// awaitStableUse waits until the use is stable and accepted, or a time-out. It returns the
// last use.
func awaitStableUse(t *testing.T, accepted func() bool) resourceUse {
	t.Helper()
	var last resourceUse
	since := time.Now()
	deadline := since.Add(20 * time.Second)
	testkit.Eventually(t, "the resources of the gateway to be stable", func() bool {
		if now := measureUse(); now != last {
			last, since = now, time.Now()
		}
		return since.Add(time.Second).Before(time.Now()) && (accepted() || time.Now().After(deadline))
	})
	return last
}

// formatLatencies returns a summary of latencies.
func formatLatencies(latencies []time.Duration) string {
	slices.Sort(latencies)
	if len(latencies) == 0 {
		return "none"
	}
	at := func(share float64) time.Duration {
		return latencies[min(len(latencies)-1, int(share*float64(len(latencies))))]
	}
	return fmt.Sprintf("%d: p50 %v, p99 %v, slowest %v", len(latencies), at(0.5), at(0.99), latencies[len(latencies)-1])
}

// Thousands of clients are in IDLE on one gateway process, and one in a hundred is active.
// In the end all sessions are still alive.
func TestIdleSessionsStay(t *testing.T) {
	n := testSize(300, 9_000)
	idle := time.Duration(testSize(5, 600)) * time.Second
	ca := testbed.NewCA(t)
	b := startProcess(t, ca, eastBackendConf(ca, startStubProcess(t, ca)), "routing: {source: static, static: {default: east}}")
	clients := make([]*lightClient, n)
	defer func() {
		for _, p := range clients {
			if p != nil {
				_ = p.conn.Close()
			}
		}
	}()
	start := time.Now()
	if err := forEachClient(clients, func(i int) (err error) {
		// From many addresses, because one address has too few ports.
		if clients[i], err = dialLight(b.endpoint("implicit"), fmt.Sprintf("127.8.0.%d", 1+i%250)); err != nil {
			return err
		}
		return clients[i].exec(fmt.Sprintf("LOGIN user%d %s", i, password))
	}); err != nil {
		t.Fatalf("log in: %v", err)
	}
	t.Logf("%d sessions after %v; %s", n, time.Since(start), b.formatUsage(t))

	latencies := pollClients(t, clients[:n/100], idle)
	t.Logf("NOOP while %d idle, %s", n, formatLatencies(latencies))
	t.Logf("after %v: %s", idle, b.formatUsage(t))
	if sessions := b.sumMetric(t, "imapgate_sessions"); int(sessions) != n {
		t.Errorf("%v sessions, of %d", sessions, n)
	}
	var dropped atomic.Int64
	if err := forEachClient(clients, func(i int) error {
		if err := clients[i].exec("NOOP"); err != nil {
			dropped.Add(1)
		}
		return nil
	}); err != nil || dropped.Load() > 0 {
		t.Errorf("%d of %d sessions were dropped", dropped.Load(), n)
	}
	t.Logf("dropped: %d; after a NOOP of each client: %s", dropped.Load(), b.formatUsage(t))
}

// formatUsage returns a summary of the gateway process's resources.
func (b *gatewayProcess) formatUsage(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("the gateway has %.0f MB, %.0f goroutines, %.0f descriptors, %.1f s of CPU",
		b.sumMetric(t, "process_resident_memory_bytes")/1e6, b.sumMetric(t, "go_goroutines"),
		b.sumMetric(t, "process_open_fds"), b.sumMetric(t, "process_cpu_seconds_total"))
}

// forEachClient calls do for every client, 32 at a time.
func forEachClient(clients []*lightClient, do func(i int) error) error {
	var workers errgroup.Group
	workers.SetLimit(32)
	for i := range clients {
		workers.Go(func() error { return do(i) })
	}
	return workers.Wait()
}

// pollClients makes every client send NOOP once a second, and returns the latencies.
func pollClients(t *testing.T, clients []*lightClient, duration time.Duration) []time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), duration)
	defer cancel()
	var mu sync.Mutex
	var all []time.Duration
	var workers errgroup.Group
	for _, p := range clients {
		workers.Go(func() error {
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for {
				start := time.Now()
				if err := p.exec("NOOP"); err != nil {
					return err
				}
				mu.Lock()
				all = append(all, time.Since(start))
				mu.Unlock()
				select {
				case <-tick.C:
				case <-ctx.Done():
					return nil
				}
			}
		})
	}
	if err := workers.Wait(); err != nil {
		t.Errorf("an active session: %v", err)
	}
	return all
}

// Logins arrive at a fixed rate, independent of earlier ones, with routes in Redis. All must
// succeed.
func TestLoginsAtAFixedRateSucceed(t *testing.T) {
	rate, long := testSize(50, 300), testSize(3, 60)
	ca := testbed.NewCA(t)
	redis := testbed.StartRedis(t)
	redis.CLI("HSET", "imapgate:default", "backend", "east")
	b := startProcess(t, ca, eastBackendConf(ca, startStubProcess(t, ca)), fmt.Sprintf("redis: {addresses: [%q]}", redis.Address))
	var mu sync.Mutex
	var latencies []time.Duration
	var failures []error
	var all sync.WaitGroup
	start := time.Now()
	for i := range rate * long {
		<-time.After(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		all.Go(func() {
			d, err := timedSession(b.endpoint("implicit"), fmt.Sprint("user", i))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err)
			}
			latencies = append(latencies, d)
		})
	}
	d := time.Since(start)
	all.Wait()
	t.Logf("%.1f logins/s for %v, connect to welcome, %s; %s", float64(len(latencies))/d.Seconds(), d, formatLatencies(latencies), b.formatUsage(t))
	if len(failures) > 0 {
		t.Errorf("%d of %d logins failed, the first: %v", len(failures), len(latencies), failures[0])
	}
}

// timedSession runs a session and returns the time from connecting to the OK of the login.
func timedSession(e endpoint, user string) (time.Duration, error) {
	start := time.Now()
	p, err := dialLight(e, "")
	if err != nil {
		return time.Since(start), err
	}
	defer p.conn.Close() // logged out
	err = p.exec("LOGIN " + user + " " + password)
	elapsed := time.Since(start)
	return elapsed, errors.Join(err, p.exec("LOGOUT"))
}
