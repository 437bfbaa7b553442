package proxy

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"flag"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// fuzzSteps are the actions of a fuzzed client, by number; other bytes are sent as they
// are.
var fuzzSteps = []string{
	"a NOOP\r\n", "b CAPABILITY\r\n", "c ID (\"name\" \"x\")\r\n", "d ID NIL\r\n", "e STARTTLS\r\n", "f LOGIN alice right\r\n",
	"g LOGIN {5}\r\n", "h LOGIN {5+}\r\nalice {5+}\r\nright\r\n", "alice {5}\r\n", "right\r\n", "i AUTHENTICATE PLAIN AGFsaWNlAHJpZ2h0\r\n",
	"j AUTHENTICATE PLAIN\r\n", "AGFsaWNlAHJpZ2h0\r\n", "*\r\n", "=\r\n", "\r\n", "k AUTHENTICATE LOGIN\r\n", "YWxpY2U=\r\n", "cmlnaHQ=\r\n",
	"l LOGIN vanish right\r\n", "m LOGIN refuse right\r\n", "n LOGIN erin right\r\n", "o LOGIN carol right\r\n", "p LOGIN dave right\r\n",
	"q LOGIN alice wrong\r\n", "r LOGOUT\r\n", "s LOGIN {9999}\r\n", "t LOGIN {9999+}\r\n", "GET / HTTP/1.1\r\n", "u LOGIN echo right\r\n",
	"v LOGIN flood right\r\n", "w SELECT INBOX\r\n", "x APPEND a {3+}\r\nabc\r\n", "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "\n", "y", "z ",
	"g LOGIN hang right\r\n",
	"h AUTHENTICATE SCRAM-SHA-256 biwsbj1jYXJvbCxyPXg=\r\n", "i AUTHENTICATE SCRAM-SHA-256\r\n", "biwsbj1jYXJvbCxyPXg=\r\n", "Yz1iaXdzLHI9eCxwPU1EQXdNREF3TURBd01EQXdNREF3TURBd01EQXdNREF3TURBd01EQXdNREE9\r\n",
	"j AUTHENTICATE XOAUTH2 dXNlcj1hbGljZQFhdXRoPUJlYXJlciB0AQE=\r\n", "k AUTHENTICATE OAUTHBEARER\r\n", "l AUTHENTICATE SCRAM-SHA-256-PLUS\r\n",
}

// Further actions of a step's byte: read an answer, close, reset, half-close, start TLS.
const (
	hearOne = 200 + iota
	hangUp
	reset
	halfClose
	beginTLS
)

// FuzzSession runs clients against one gateway. It checks the harness's invariants at the
// end and that every connection is released at once.
func FuzzSession(f *testing.F) {
	for _, seed := range [][]byte{
		{0, hearOne, 1, hearOne, hearOne, 5, hearOne, 31, 0, hearOne, hangUp},
		{6, hearOne, 8, hearOne, 9, hearOne, 32, halfClose}, {4, beginTLS, 5, hearOne, 0, hearOne}, {11, hearOne, 12, 0, reset},
		{16, hearOne, 17, hearOne, 18, hearOne, 25}, {10, 31, 32, 0, reset}, {19, hearOne, 20, hearOne, 21, hearOne, 22, hearOne},
		{23, hearOne, 24, hearOne, 5}, {26, 27}, {28}, {29, 5}, {30, hearOne, reset}, {35, 36, 0, hangUp}, {33, 0}, {37, reset}, {37, hangUp}, {'x', 255, 0},
		{38, hearOne, 41, hearOne, 0}, {39, hearOne, 40, hearOne, 41, hearOne}, {42, hearOne, 15, hearOne, 5}, {42, reset}, {43, hearOne, 13}, {44, 15},
	} {
		for listener := range byte(6) {
			f.Add(listener, seed)
		}
	}
	if fuzzing := flag.Lookup("test.fuzz"); fuzzing.Value.String() == "" {
		checkLeaks(f) // the fuzzing engine has goroutines of its own
	}
	m := openTestBackend(f)
	b := openHarness(f, m.addr(), func(s *harnessConfig) {
		s.cfg.PreauthTimeout, s.cfg.TLSHandshakeTimeout, s.cfg.MaxAuthAttempts = 700*time.Millisecond, 300*time.Millisecond, 2
		s.cfg.WriteTimeout = time.Second
		s.changeServer = func(s *Server) { s.logins.MinDenialTime, s.logins.DenialJitter = 0, 1 } // otherwise most of the time would be spent waiting
		s.auth.Mechanisms = []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"}
		s.auth.SCRAMSecret = identity.NewSecret("a secret of the whole cluster")
		for _, name := range []string{"vanish", "refuse", "echo", "flood", "hang"} {
			s.routes.Static.Users[name] = "east"
		}
		east := s.backends["east"]
		east.UpstreamLoginTimeout = 700 * time.Millisecond
		s.backends["east"] = east
	})
	f.Fuzz(func(t *testing.T, listener byte, plot []byte) {
		names := []string{"none", "starttls", "implicit", "trusting-none", "balanced-none", "balanced-starttls"}
		name := names[int(listener)%len(names)]
		nc, err := net.Dial("tcp", b.addr(name))
		testkit.NoError(t, err)
		testkit.NoError(t, nc.SetDeadline(time.Now().Add(testbed.Timeout)))
		c := &client{t: t, harness: b, nc: nc, r: bufio.NewReader(nc)}
		if strings.HasPrefix(name, "balanced") {
			c.tryWrite("PROXY TCP4 192.0.2.1 192.0.2.2 4711 143\r\n")
		}
		if name == "implicit" {
			c.startTLS()
		}
		for _, step := range plot[:min(len(plot), 24)] {
			c.runStep(step)
		}
		c.close()
		testkit.Eventually(t, "the connection to be released", func() bool {
			return b.server.openConns.Load() == 0 && b.server.Registry().Len() == 0 && m.Open() == 0
		})
		if n := strings.Count(b.logs.String(), `"msg":"panic recovered"`); n > 0 {
			t.Fatalf("a panic:\n%s", b.logs)
		}
	})
}

func (c *client) tryWrite(text string) { _, _ = io.WriteString(c.nc, text) }

// runStep runs one step; a closed connection is no failure.
func (c *client) runStep(step byte) {
	switch {
	case int(step) < len(fuzzSteps):
		c.tryWrite(fuzzSteps[step])
	case step == hearOne:
		_ = c.nc.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // there may be no answer, or no peer
		_, _ = c.r.ReadString('\n')
		_ = c.nc.SetReadDeadline(time.Now().Add(testbed.Timeout))
	case step == hangUp:
		c.close()
	case step == reset:
		c.reset()
	case step == halfClose:
		if half, ok := c.nc.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	case step == beginTLS:
		if _, plain := c.nc.(*net.TCPConn); plain {
			_, _ = c.r.ReadString('\n')
			_, _ = c.r.ReadString('\n')
			_ = c.handshake(&tls.Config{})
		}
	default:
		c.tryWrite(base64.StdEncoding.EncodeToString([]byte{step}) + string(rune(step)))
	}
}
