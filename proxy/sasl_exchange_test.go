package proxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"imapgate/auth"
	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// The rows of the attack catalogue about exchanges, for mechanisms with more steps than
// PLAIN.

// withAllMechanisms offers all mechanisms. carol has a password for SCRAM, a certificate
// and a right token.
func withAllMechanisms(t testing.TB, ca *testCA) func(*harnessConfig) {
	scrams := withSCRAM(t)
	return func(s *harnessConfig) {
		scrams(s)
		s.clientCA, s.auth.External.SAN = ca.pem(), "email"
		s.limits.Failures.PerUserNetworkHour = 1 << 30 // otherwise carol would be refused before verification
		s.auth.Methods = []string{auth.File, auth.OAuth}
		s.auth.Mechanisms = []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "EXTERNAL", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"}
		s.authSources.OAuth = func(_ context.Context, token identity.Secret) (string, time.Time, error) {
			if token.Reveal() != "right" {
				return "", time.Time{}, auth.ErrDenied
			}
			return "carol", time.Time{}, nil
		}
	}
}

// dialWithCert connects with a certificate.
func (b *harness) dialWithCert(cert tls.Certificate) *client {
	b.t.Helper()
	c := b.dial("implicit")
	testkit.NoError(b.t, c.handshake(&tls.Config{Certificates: []tls.Certificate{cert}}))
	c.expectLine("* OK [CAPABILITY …] IMAP ready.")
	return c
}

const (
	scramFirstCarol = "n,,n=carol,r=fyko+d2lbbFgONRv9qkxdawL" // a nonce as RFC 5802 has it
	scramFinalWrong = "c=biws,r=fyko+d2lbbFgONRv9qkxdawL,p=AAAA"
	bearer          = "n,a=carol,\x01auth=Bearer %\x01\x01"
	xoauth2         = "user=carol\x01auth=Bearer %\x01\x01"
)

// encodeToken encodes a token in one of the two forms.
func encodeToken(form, token string) string {
	return encodeBase64(strings.Replace(form, "%", token, 1))
}

func TestFailedMultiStepExchangeLeavesNoState(t *testing.T) {
	ca := newTestCA(t)
	b := newHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, ca), func(s *harnessConfig) { s.cfg.MaxAuthAttempts, s.cfg.MaxBadCommands = 1000, 1000 })
	first, long := encodeBase64(scramFirstCarol), strings.Repeat("A", 8000)
	for mechanism, tries := range map[string][][]string{
		"SCRAM-SHA-256": {
			{"!"}, {"="}, {"", "!"}, {"", "*"}, {"", ""}, {first, "*"}, {first, ""}, {first, "!"}, {first, "="}, {first, first},
			{first, encodeBase64(scramFinalWrong)}, {first, long}, {"", long}, {encodeBase64("n,,n=carol")}, {encodeBase64("n,,n==FF,r=x")},
		},
		"SCRAM-SHA-256-PLUS": {
			{first}, {encodeBase64("y,,n=carol,r=x")}, {encodeBase64("p=tls-unique,,n=carol,r=x")}, {encodeBase64("p=tls-exporter,,n=carol,r=x"), "*"},
			{encodeBase64("p=tls-exporter,,n=carol,r=x"), encodeBase64(scramFinalWrong)},
		},
		"OAUTHBEARER": {
			{"!"}, {"="}, {"", "*"}, {"", ""}, {encodeBase64("n,,")}, {encodeBase64("n,,\x01\x01")}, {encodeBase64("\x01auth=Bearer right\x01\x01")},
			{encodeToken(bearer, "wrong"), "*"}, {encodeToken(bearer, "wrong"), "AQ=="}, {encodeToken(bearer, "wrong"), "!"}, {encodeToken(bearer, "wrong"), long},
		},
		"XOAUTH2": {
			{"!"}, {"="}, {"", "*"}, {"", ""}, {encodeBase64("user=carol")}, {encodeBase64("auth=Bearer right\x01\x01")},
			{encodeToken(xoauth2, "wrong"), "*"}, {encodeToken(xoauth2, "wrong"), ""}, {encodeToken(xoauth2, "wrong"), "!"}, {encodeToken(xoauth2, "wrong"), long},
		},
		"EXTERNAL": {{"!"}, {"", "*"}, {"", "!"}, {"", encodeBase64("frank")}, {"", long}, {encodeBase64("\x00")}, {encodeBase64("carol\x00right")}},
	} {
		c := b.dialWithCert(ca.issue([]string{"carol@example.org"}, nil))
		for _, responses := range tries {
			c.expectFailure(mechanism, responses)
		}
		c.write("c AUTHENTICATE XOAUTH2 " + encodeToken(xoauth2, "right") + "\r\n") // with an empty state
		c.expectLine("c OK …")
		c.close()
	}
}

// expectFailure starts AUTHENTICATE with an optional initial response, answers the
// challenges and expects a refusal. A refused token gets an error challenge first, whatever
// the answer to it.
func (c *client) expectFailure(mechanism string, responses []string) {
	c.t.Helper()
	c.write(strings.TrimRight("a AUTHENTICATE "+mechanism+" "+responses[0], " ") + "\r\n")
	responses = responses[1:]
	for {
		line, err := c.r.ReadString('\n')
		if err == nil && strings.HasPrefix(line, "+ ") {
			answer := "*"
			if len(responses) > 0 {
				answer, responses = responses[0], responses[1:]
			}
			c.write(answer + "\r\n")
			continue
		}
		if err != nil || !matchesPattern("a NO [AUTHENTICATIONFAILED] …", line) && !matchesPattern("a BAD …", line) {
			c.t.Fatalf("%s: received %q, %v", mechanism, line, err)
		}
		break
	}
	c.write("b NOOP\r\n")
	c.expectLine("b OK Nothing done.")
}

// abortedExchanges returns exchanges up to where the client closes. An answer is read after
// each line but the last.
func abortedExchanges() [][]string {
	first := encodeBase64(scramFirstCarol)
	return [][]string{
		{"a AUTHENTICATE SCRAM-SHA-256\r\n"}, {"a AUTHENTICATE SCRAM-SHA-256\r\n", first[:9]}, {"a AUTHENTICATE SCRAM-SHA-256 " + first + "\r\n"},
		{"a AUTHENTICATE SCRAM-SHA-256 " + first + "\r\n", "Yz1i"}, {"a AUTHENTICATE SCRAM-SHA-256 " + first + "\r\n", encodeBase64(scramFinalWrong) + "\r\n"},
		{"a AUTHENTICATE OAUTHBEARER\r\n"}, {"a AUTHENTICATE OAUTHBEARER\r\n", encodeToken(bearer, "right")[:20]},
		{"a AUTHENTICATE OAUTHBEARER " + encodeToken(bearer, "wrong") + "\r\n", "AQ"}, {"a AUTHENTICATE OAUTHBEARER " + encodeToken(bearer, "wrong") + "\r\n", "AQ==\r\n"},
		{"a AUTHENTICATE OAUTHBEARER " + encodeToken(bearer, "right") + "\r\n"},
		{"a AUTHENTICATE XOAUTH2\r\n", "dXNl"}, {"a AUTHENTICATE XOAUTH2 " + encodeToken(xoauth2, "wrong") + "\r\n", ""},
		{"a AUTHENTICATE XOAUTH2 " + encodeToken(xoauth2, "right") + "\r\n"},
		{"a AUTHENTICATE EXTERNAL\r\n"}, {"a AUTHENTICATE EXTERNAL\r\n", "Y2Fy"}, {"a AUTHENTICATE EXTERNAL =\r\n"},
		{"a AUTHENTICATE SCRAM-SHA-256-PLUS\r\n"}, {"a AUTHENTICATE SCRAM-SHA-256-PLUS " + encodeBase64("p=tls-exporter,,n=carol,r=x") + "\r\n", "Yz1"},
	}
}

// abortCount returns how many exchanges to abort: few in an ordinary run, or ten thousand.
func abortCount(few int) int {
	if os.Getenv("IMAPGATE_SOAK") == "" {
		return few
	}
	return 10_000
}

// countHeapObjects returns the number of heap objects. Unlike the heap's size, it does not
// grow with the test's log.
func countHeapObjects() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // pools are empty after two collections
	runtime.ReadMemStats(&m)
	return int(m.HeapObjects)
}

// checkHeapGrowth fails if n exchanges have left an object for every ten of them.
func checkHeapGrowth(t *testing.T, n, before int) {
	t.Helper()
	after := countHeapObjects()
	t.Logf("%d exchanges aborted: %d objects live before, %d after", n, before, after)
	if after-before > 1000+n/10 {
		t.Errorf("%d more objects are live after %d exchanges", after-before, n)
	}
}

// newHarness checks for other leaks: goroutines, descriptors, slots, and one recorded end
// of each connection.
func TestAbortedMultiStepExchangesLeaveNoState(t *testing.T) {
	ca := newTestCA(t)
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), withAllMechanisms(t, ca))
	show := &tls.Config{RootCAs: b.rootCAs, ServerName: "localhost", Certificates: []tls.Certificate{ca.issue([]string{"carol@example.org"}, nil)}}
	all := abortedExchanges()
	var met atomic.Int64
	before, n := countHeapObjects(), abortCount(25*len(all))
	runParallel(n, 16, func(i int) {
		with := show
		if i/len(all)%3 > 0 {
			with = nil
		}
		if b.abortExchange(all[i%len(all)], with) {
			met.Add(1)
		}
	})
	if greeted := int(met.Load()); greeted != n {
		t.Errorf("%d of %d were greeted", greeted, n)
	}
	runParallel(40, 8, func(int) {
		if _, err := b.timeLogin(timingProbe{run: (*prober).proveAndClose}, "carol"); err != nil {
			t.Errorf("carol's proof is not answered by the gateway's: %v", err)
		}
	})
	testkit.Eventually(t, "everything to be released", func() bool { return m.Open() == 0 && b.server.openConns.Load() == 0 })
	checkHeapGrowth(t, n, before)
	c := b.dialGreeted("implicit")
	e := c.startScram("SCRAM-SHA-256-PLUS", "carol", password, "tls-exporter")
	if _, err := e.conversation.Step(c.readChallenge()); err != nil {
		t.Error(err)
	}
	c.write("\r\n")
	c.expectLine("a OK …")
	c.close()
}

// abortExchange plays one of abortedExchanges, over TLS unless cfg is nil, and reports
// whether the gateway has greeted.
func (b *harness) abortExchange(lines []string, cfg *tls.Config) bool {
	listener := "none"
	if cfg != nil {
		listener = "implicit"
	}
	nc, err := net.Dial("tcp", b.addr(listener))
	if err != nil {
		return false
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	p := &prober{nc: nc, r: bufio.NewReader(nc)}
	if cfg != nil {
		s := tls.Client(nc, cfg)
		p = &prober{nc: s, r: bufio.NewReader(s)}
	}
	greeted := strings.HasPrefix(p.readLine(), "* OK")
	for i, line := range lines {
		if i > 0 {
			p.readLine()
		}
		_, _ = io.WriteString(p.nc, line) // early denials are checked in the records
	}
	if len(lines[len(lines)-1])%2 == 0 {
		_ = nc.(*net.TCPConn).SetLinger(0)
	}
	return greeted
}

// proveAndClose closes after it has received the gateway's own proof.
func (p *prober) proveAndClose(user string) bool {
	client, err := scram.SHA256.NewClient(user, password, "")
	return err == nil && strings.HasPrefix(p.runScram("SCRAM-SHA-256", client.NewConversation()), "+ ")
}

func TestProofIsBoundToItsUser(t *testing.T) {
	ca := newTestCA(t)
	b := newHarness(t, openTestBackend(t).addr(), withAllMechanisms(t, ca))
	hers := ca.issue([]string{"carol@example.org"}, nil)
	var clients []*client
	for _, other := range []string{"frank", "frank@example.org", "*", "gateway", "\xff"} {
		for _, begin := range []string{
			"SCRAM-SHA-256 " + encodeBase64("n,a="+other+",n=carol,r=x"), "SCRAM-SHA-256-PLUS " + encodeBase64("p=tls-exporter,a="+other+",n=carol,r=x"),
			"EXTERNAL " + encodeBase64(other),
		} {
			c := b.dialWithCert(hers)
			c.write("a AUTHENTICATE " + begin + "\r\n")
			clients = append(clients, c)
		}
	}
	for _, c := range clients {
		c.expectLine("a " + authFailedReply)
		c.close()
	}
	if b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was contacted")
	}
}
