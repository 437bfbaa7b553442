package admin

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/identity"
)

// answerTimeout bounds the wait for an answer, with a reserve for a busy machine.
const answerTimeout = 20 * time.Second

// dialFrom connects to the server from an address of this machine.
func dialFrom(t *testing.T, s *Server, ip string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}, Timeout: answerTimeout}
	c, err := d.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		t.Fatal(err)
	}
	return c
}

// getOn requests a path and reads the whole answer. The connection stays open.
func getOn(t *testing.T, c net.Conn, path string) int {
	t.Helper()
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", path, token); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return answer.StatusCode
}

var openPaths = []string{pathReady, pathHealth, pathMetrics}

func TestIdleConnectionsDoNotBlockOthers(t *testing.T) {
	t.Parallel()
	send := func(text string) func(*testing.T, net.Conn) {
		return func(t *testing.T, c net.Conn) {
			if _, err := io.WriteString(c, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	occupy := map[string]func(t *testing.T, c net.Conn){
		"idle after an answer":     func(t *testing.T, c net.Conn) { getOn(t, c, pathHealth) },
		"silent":                   func(*testing.T, net.Conn) {},
		"half a request":           send("GET /healthz HTTP/1.1\r\nHost: local"),
		"a request without a body": send("POST /v1/bans HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"),
		"an unknown path":          send("POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf"),
	}
	for name, occupied := range occupy {
		for _, from := range []string{"127.0.0.1", "127.0.0.2"} {
			t.Run(name+", from "+from, func(t *testing.T) {
				t.Parallel()
				s := newServer(Settings{Address: "127.0.0.1:0", Token: identity.NewSecret(token)}, testDeps(new(atomic.Bool)))
				// Longer than the test waits: only the new connection can end another.
				s.http.ReadHeaderTimeout, s.http.ReadTimeout, s.http.IdleTimeout = time.Hour, time.Hour, time.Hour
				startServing(t, s)
				for range 2 * maxConns {
					occupied(t, dialFrom(t, s, "127.0.0.1"))
				}
				for _, path := range openPaths {
					if status := getOn(t, dialFrom(t, s, from), path); status != http.StatusOK {
						t.Errorf("%s: %d", path, status)
					}
				}
			})
		}
	}
}

// A monitor that keeps its connection is not replaced while another network has more
// connections.
func TestBusiestNetworkLosesItsIdleConnections(t *testing.T) {
	t.Parallel()
	s := newServer(Settings{Address: "127.0.0.1:0", Token: identity.NewSecret(token)}, testDeps(new(atomic.Bool)))
	startServing(t, s)
	monitor := dialFrom(t, s, "127.0.0.2")
	getOn(t, monitor, pathReady)
	for range 3 * maxConns {
		getOn(t, dialFrom(t, s, "127.0.0.1"), pathHealth)
	}
	if status := getOn(t, monitor, pathReady); status != http.StatusOK {
		t.Errorf("the monitor got %d on its connection", status)
	}
}

func TestActiveRequestKeepsItsSlotAndHealthIsAlwaysServed(t *testing.T) {
	t.Parallel()
	shows := testDeps(new(atomic.Bool))
	begun, end := make(chan struct{}), make(chan struct{})
	shows.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-end
		_, _ = io.WriteString(w, "measured\n") // the test reads it
	})
	s := newServer(Settings{Address: "127.0.0.1:0", Token: identity.NewSecret(token)}, shows)
	startServing(t, s)
	slow := make([]net.Conn, maxRequests)
	for i := range slow {
		slow[i] = dialFrom(t, s, "127.0.0.1")
		if _, err := fmt.Fprintf(slow[i], "GET /metrics HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", token); err != nil {
			t.Fatal(err)
		}
		<-begun
	}
	if status := getOn(t, dialFrom(t, s, "127.0.0.1"), pathMetrics); status != http.StatusServiceUnavailable {
		t.Errorf("one request beyond the limit got %d", status)
	}
	for range 2 * maxConns {
		for _, path := range []string{pathReady, pathHealth} {
			if status := getOn(t, dialFrom(t, s, "127.0.0.1"), path); status != http.StatusOK {
				t.Errorf("%s: %d", path, status)
			}
		}
	}
	close(end)
	for i, c := range slow {
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatalf("request %d in progress: %v", i, err)
		}
		if body, err := io.ReadAll(answer.Body); err != nil || !strings.Contains(string(body), "measured") {
			t.Errorf("request %d in progress: %q, %v", i, body, err)
		}
	}
	go func() { // the path is served again
		<-begun
	}()
	if status := getOn(t, slow[0], pathMetrics); status != http.StatusOK {
		t.Errorf("after all of them: %d", status)
	}
}
