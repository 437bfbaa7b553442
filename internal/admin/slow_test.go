package admin

import (
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"imapgate/internal/identity"
)

// Both requests send all but their last byte, and then wait.
func TestASlowRequestIsEnded(t *testing.T) {
	t.Parallel()
	s := newServer(Settings{Address: "127.0.0.1:0", Token: identity.NewSecret(token)}, testDeps(new(atomic.Bool)))
	s.http.ReadHeaderTimeout, s.http.ReadTimeout = time.Second/5, time.Second/2
	startServing(t, s)
	slow := map[time.Duration]string{
		s.http.ReadHeaderTimeout: "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r",
		s.http.ReadTimeout: "POST /v1/bans HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + token +
			"\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{\"who\":\"",
	}
	began, waits := time.Now(), map[time.Duration]net.Conn{}
	for limit, request := range slow {
		c, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		waits[limit] = c
	}
	for limit, c := range waits {
		if err := c.SetDeadline(began.Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if took := time.Since(began); err != nil || took < limit {
			t.Errorf("a request of at most %v: %q, %v after %v", limit, answer, err, took)
		}
	}
}
