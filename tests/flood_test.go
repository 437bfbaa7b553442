package tests

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// Three thousand clients that send single bytes must not delay other logins. They are
// disconnected after the preauth time-out, however often they send.
func TestSlowClientsDelayNoLogin(t *testing.T) {
	const slowClients, preauthTimeout = 3_000, 8 * time.Second
	ca := testbed.NewCA(t)
	b := startProcess(t, ca, fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", startStub(t, nil).Addr()),
		"routing: {source: static, static: {default: east}}",
		fmt.Sprintf("limits: {preauth_timeout: %v, tls_handshake_timeout: %v, tls_handshakes: 1}", preauthTimeout, preauthTimeout))
	conns := make([]net.Conn, slowClients)
	start := time.Now()
	for i := range conns {
		listener, first := "implicit", "\x16\x03\x01\x02\x00\x01\x00" // an incomplete ClientHello
		if i%2 == 0 {
			listener, first = "starttls", "a LOG"
		}
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 8, 1, byte(1+i%250))}}).Dial("tcp", b.addresses[listener])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, first); err != nil {
			t.Fatal(err)
		}
		conns[i] = conn
	}
	all := time.Now()
	var latencies []time.Duration
	for i := range 10 {
		d, err := timedSession(b.endpoint("implicit"), fmt.Sprint("user", i))
		if err != nil {
			t.Errorf("a login beside %d slow clients: %v", slowClients, err)
		}
		latencies = append(latencies, d)
		for _, conn := range conns {
			_, _ = io.WriteString(conn, "\x00") // fails once the gateway has disconnected it
		}
	}
	t.Logf("%d slow clients after %v; logins beside them, %s; %s", slowClients, all.Sub(start), formatLatencies(latencies), b.formatUsage(t))
	testkit.Eventually(t, "the slow clients to be disconnected", func() bool {
		for i := range 100 {
			_, _ = io.WriteString(conns[i], "\x00")
		}
		return b.sumMetric(t, "imapgate_preauth_connections") == 0
	})
}

// Five hundred concurrent guesses at a password whose hash takes 64 MB and a tenth of a
// second. Most are refused as UNAVAILABLE at once, the others are verified, and neither
// memory use nor sessions suffer.
func TestGuessesAtAnExpensiveHashDisturbNoSession(t *testing.T) {
	const guesses, memory = 500, 768 << 20
	ca := testbed.NewCA(t)
	hash, err := auth.Hash("ARGON2ID", identity.NewSecret(password))
	if err != nil {
		t.Fatal(err)
	}
	// 127.0.0.0/8 is exempt from the limits, which would refuse most guesses.
	g := startGateway(t, ca, singleBackend(plainBackend(startStub(t, nil).Addr())),
		fmt.Sprintf("auth: {methods: [file], file: {path: %q}}", writeText(t, "passwd", "alice:"+hash+"\n")))
	target := g.endpoint(event.NoTLS)
	session, err := dialLight(target, "")
	if err == nil {
		err = session.exec("LOGIN alice " + password)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer session.conn.Close()
	clients := make([]*lightClient, guesses)
	if err := forEachClient(clients, func(i int) (err error) {
		clients[i], err = dialLight(target, "")
		return err
	}); err != nil {
		t.Fatal(err)
	}

	var mu sync.Mutex
	answers, unavailable := map[string]int{}, []time.Duration{}
	var all sync.WaitGroup
	for i, p := range clients {
		all.Go(func() {
			defer p.conn.Close()
			start := time.Now()
			err := p.exec(fmt.Sprintf("LOGIN alice guess%d", i))
			elapsed := time.Since(start)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				answers["accepted"]++
			case strings.Contains(err.Error(), "NO [UNAVAILABLE]"):
				answers["unavailable"]++
				unavailable = append(unavailable, elapsed)
			case strings.Contains(err.Error(), "NO [AUTHENTICATIONFAILED]"):
				answers["denied"]++
			default:
				answers[err.Error()]++
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	slowest, most := session.measureUntil(t, done)
	t.Logf("%v; unavailable: %s; slowest NOOP %v; %d MB at most", answers, formatLatencies(unavailable), slowest, most>>20)
	if answers["denied"] == 0 || answers["unavailable"] < guesses/2 || len(answers) != 2 {
		t.Errorf("results of the guesses: %v", answers)
	}
	if most > memory {
		t.Errorf("the process held %d MB", most>>20)
	}
}

// measureUntil sends NOOP repeatedly until stop is closed. It returns the slowest response
// time and the largest heap.
func (p *lightClient) measureUntil(t *testing.T, stop <-chan struct{}) (slowest time.Duration, maxHeap uint64) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		start := time.Now()
		if err := p.exec("NOOP"); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(start))
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		maxHeap = max(maxHeap, m.HeapInuse)
		select {
		case <-tick.C:
		case <-stop:
			return slowest, maxHeap
		}
	}
}
