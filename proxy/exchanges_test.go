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
)

// The rows of the catalogue about exchanges, for the mechanisms that have more steps
// than a password has.

// withEveryMechanism offers all there are. Carol has a password for SCRAM, a
// certificate, and the token that is right.
func withEveryMechanism(t testing.TB, ca *authority) func(*setup) {
	scrams := withScram(t)
	return func(s *setup) {
		scrams(s)
		s.clientCA, s.auth.External = ca.pem(), "email"
		s.limits.Failures.PerPairHour = 1 << 30 // or carol would be refused before she is looked at
		s.auth.Methods = []string{auth.File, auth.OAuth}
		s.auth.Mechanisms = []string{"SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "EXTERNAL", "OAUTHBEARER", "XOAUTH2", "PLAIN", "LOGIN"}
		s.asked.OAuth = func(_ context.Context, token identity.Secret) (string, time.Time, error) {
			if token.Reveal() != "right" {
				return "", time.Time{}, auth.ErrDenied
			}
			return "carol", time.Time{}, nil
		}
	}
}

// shows connects with a certificate.
func (b *bed) shows(cert tls.Certificate) *client {
	b.t.Helper()
	c := b.dial("implicit")
	must(b.t, c.handshake(&tls.Config{Certificates: []tls.Certificate{cert}}))
	c.hear("* OK [CAPABILITY …] IMAP ready.")
	return c
}

const (
	carolsFirst = "n,,n=carol,r=fyko+d2lbbFgONRv9qkxdawL" // a nonce as RFC 5802 has it
	wrongFinal  = "c=biws,r=fyko+d2lbbFgONRv9qkxdawL,p=AAAA"
	bearer      = "n,a=carol,\x01auth=Bearer %\x01\x01"
	xoauth2     = "user=carol\x01auth=Bearer %\x01\x01"
)

// bringing is a token in one of the two forms.
func bringing(form, token string) string { return coded(strings.Replace(form, "%", token, 1)) }

func TestC7AFailedExchangeOfMoreStepsHurtsNobodyAndLeavesNothing(t *testing.T) {
	ca := newAuthority(t)
	b := newBed(t, openMailbox(t).addr(), withEveryMechanism(t, ca), func(s *setup) { s.cfg.AuthAttempts, s.cfg.BadCommands = 1000, 1000 })
	first, long := coded(carolsFirst), strings.Repeat("A", 8000)
	for mechanism, tries := range map[string][][]string{
		"SCRAM-SHA-256": {
			{"!"}, {"="}, {"", "!"}, {"", "*"}, {"", ""}, {first, "*"}, {first, ""}, {first, "!"}, {first, "="}, {first, first},
			{first, coded(wrongFinal)}, {first, long}, {"", long}, {coded("n,,n=carol")}, {coded("n,,n==FF,r=x")},
		},
		"SCRAM-SHA-256-PLUS": {
			{first}, {coded("y,,n=carol,r=x")}, {coded("p=tls-unique,,n=carol,r=x")}, {coded("p=tls-exporter,,n=carol,r=x"), "*"},
			{coded("p=tls-exporter,,n=carol,r=x"), coded(wrongFinal)},
		},
		"OAUTHBEARER": {
			{"!"}, {"="}, {"", "*"}, {"", ""}, {coded("n,,")}, {coded("n,,\x01\x01")}, {coded("\x01auth=Bearer right\x01\x01")},
			{bringing(bearer, "wrong"), "*"}, {bringing(bearer, "wrong"), "AQ=="}, {bringing(bearer, "wrong"), "!"}, {bringing(bearer, "wrong"), long},
		},
		"XOAUTH2": {
			{"!"}, {"="}, {"", "*"}, {"", ""}, {coded("user=carol")}, {coded("auth=Bearer right\x01\x01")},
			{bringing(xoauth2, "wrong"), "*"}, {bringing(xoauth2, "wrong"), ""}, {bringing(xoauth2, "wrong"), "!"}, {bringing(xoauth2, "wrong"), long},
		},
		"EXTERNAL": {{"!"}, {"", "*"}, {"", "!"}, {"", coded("frank")}, {"", long}, {coded("\x00")}, {coded("carol\x00right")}},
	} {
		c := b.shows(ca.issue([]string{"carol@example.org"}, nil))
		for _, says := range tries {
			c.fails(mechanism, says)
		}
		c.say("c AUTHENTICATE XOAUTH2 " + bringing(xoauth2, "right") + "\r\n") // out of an empty state
		c.hear("c OK …")
		c.close()
	}
}

// fails begins AUTHENTICATE with an initial response, if there is one, answers the
// challenges, and wants to be refused. A token that was refused is told so first,
// whatever is answered.
func (c *client) fails(mechanism string, says []string) {
	c.t.Helper()
	c.say(strings.TrimRight("a AUTHENTICATE "+mechanism+" "+says[0], " ") + "\r\n")
	says = says[1:]
	for {
		line, err := c.r.ReadString('\n')
		if err == nil && strings.HasPrefix(line, "+ ") {
			answer := "*"
			if len(says) > 0 {
				answer, says = says[0], says[1:]
			}
			c.say(answer + "\r\n")
			continue
		}
		if err != nil || !matches("a NO [AUTHENTICATIONFAILED] …", line) && !matches("a BAD …", line) {
			c.t.Fatalf("%s: heard %q, %v", mechanism, line, err)
		}
		break
	}
	c.say("b NOOP\r\n")
	c.hear("b OK Nothing done.")
}

// brokenOff are exchanges up to where the client is gone. Behind all but the last line
// an answer is read.
func brokenOff() [][]string {
	first := coded(carolsFirst)
	return [][]string{
		{"a AUTHENTICATE SCRAM-SHA-256\r\n"}, {"a AUTHENTICATE SCRAM-SHA-256\r\n", first[:9]}, {"a AUTHENTICATE SCRAM-SHA-256 " + first + "\r\n"},
		{"a AUTHENTICATE SCRAM-SHA-256 " + first + "\r\n", "Yz1i"}, {"a AUTHENTICATE SCRAM-SHA-256 " + first + "\r\n", coded(wrongFinal) + "\r\n"},
		{"a AUTHENTICATE OAUTHBEARER\r\n"}, {"a AUTHENTICATE OAUTHBEARER\r\n", bringing(bearer, "right")[:20]},
		{"a AUTHENTICATE OAUTHBEARER " + bringing(bearer, "wrong") + "\r\n", "AQ"}, {"a AUTHENTICATE OAUTHBEARER " + bringing(bearer, "wrong") + "\r\n", "AQ==\r\n"},
		{"a AUTHENTICATE OAUTHBEARER " + bringing(bearer, "right") + "\r\n"},
		{"a AUTHENTICATE XOAUTH2\r\n", "dXNl"}, {"a AUTHENTICATE XOAUTH2 " + bringing(xoauth2, "wrong") + "\r\n", ""},
		{"a AUTHENTICATE XOAUTH2 " + bringing(xoauth2, "right") + "\r\n"},
		{"a AUTHENTICATE EXTERNAL\r\n"}, {"a AUTHENTICATE EXTERNAL\r\n", "Y2Fy"}, {"a AUTHENTICATE EXTERNAL =\r\n"},
		{"a AUTHENTICATE SCRAM-SHA-256-PLUS\r\n"}, {"a AUTHENTICATE SCRAM-SHA-256-PLUS " + coded("p=tls-exporter,,n=carol,r=x") + "\r\n", "Yz1"},
	}
}

// cutsWanted is how many exchanges are cut off: as many as an ordinary run has time
// for, or ten thousand.
func cutsWanted(few int) int {
	if os.Getenv("IMAPGATE_SOAK") == "" {
		return few
	}
	return 10_000
}

// living is how many objects the heap holds. Unlike their size it does not grow with
// the log that a test keeps.
func living() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools held is gone after the second
	runtime.ReadMemStats(&m)
	return int(m.HeapObjects)
}

// keepsNothing fails when n exchanges have left something for every tenth of them.
func keepsNothing(t *testing.T, n, before int) {
	t.Helper()
	after := living()
	t.Logf("%d exchanges cut off: %d objects live before, %d after", n, before, after)
	if after-before > 1000+n/10 {
		t.Errorf("%d objects more are live behind %d exchanges", after-before, n)
	}
}

// What else is left behind is looked for by newBed: goroutines, descriptors, places,
// and one end of each connection on record.
func TestC7ExchangesOfMoreStepsThatAreCutOffLeaveNothing(t *testing.T) {
	ca := newAuthority(t)
	m := openMailbox(t)
	b := newBed(t, m.addr(), withEveryMechanism(t, ca))
	show := &tls.Config{RootCAs: b.trusts, ServerName: "localhost", Certificates: []tls.Certificate{ca.issue([]string{"carol@example.org"}, nil)}}
	all := brokenOff()
	var met atomic.Int64
	before, n := living(), cutsWanted(25*len(all))
	crowd(n, 16, func(i int) {
		with := show
		if i/len(all)%3 > 0 {
			with = nil
		}
		if b.cut(all[i%len(all)], with) {
			met.Add(1)
		}
	})
	if greeted := int(met.Load()); greeted != n {
		t.Errorf("%d of %d were greeted", greeted, n)
	}
	crowd(40, 8, func(int) {
		if _, err := b.probe(question{ask: (*prober).provesAndLeaves}, "carol"); err != nil {
			t.Errorf("carol's proof is not answered by the gateway's: %v", err)
		}
	})
	within(t, "everything to be given back", func() bool { return m.open() == 0 && b.server.open.Load() == 0 })
	keepsNothing(t, n, before)
	c := b.greeted("implicit")
	e := c.scram("SCRAM-SHA-256-PLUS", "carol", password, "tls-exporter")
	if _, err := e.side.Step(c.challenge()); err != nil {
		t.Error(err)
	}
	c.say("\r\n")
	c.hear("a OK …")
	c.close()
}

// cut plays one of brokenOff, over TLS unless show is nil, and says whether the
// gateway has greeted.
func (b *bed) cut(lines []string, show *tls.Config) bool {
	listener := "none"
	if show != nil {
		listener = "implicit"
	}
	nc, err := net.Dial("tcp", b.addr(listener))
	if err != nil {
		return false
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	p := &prober{nc: nc, r: bufio.NewReader(nc)}
	if show != nil {
		s := tls.Client(nc, show)
		p = &prober{nc: s, r: bufio.NewReader(s)}
	}
	greeted := strings.HasPrefix(p.hear(), "* OK")
	for i, line := range lines {
		if i > 0 {
			p.hear()
		}
		_, _ = io.WriteString(p.nc, line) // whoever is denied early is heard of in the records
	}
	if len(lines[len(lines)-1])%2 == 0 {
		_ = nc.(*net.TCPConn).SetLinger(0)
	}
	return greeted
}

// provesAndLeaves is gone when it has the gateway's own proof.
func (p *prober) provesAndLeaves(user string) bool {
	client, err := scram.SHA256.NewClient(user, password, "")
	return err == nil && strings.HasPrefix(p.prove("SCRAM-SHA-256", client.NewConversation()), "+ ")
}

func TestE2NoProofIsForSomebodyElse(t *testing.T) {
	ca := newAuthority(t)
	b := newBed(t, openMailbox(t).addr(), withEveryMechanism(t, ca))
	hers := ca.issue([]string{"carol@example.org"}, nil)
	var clients []*client
	for _, other := range []string{"frank", "frank@example.org", "*", "gateway", "\xff"} {
		for _, begin := range []string{
			"SCRAM-SHA-256 " + coded("n,a="+other+",n=carol,r=x"), "SCRAM-SHA-256-PLUS " + coded("p=tls-exporter,a="+other+",n=carol,r=x"),
			"EXTERNAL " + coded(other),
		} {
			c := b.shows(hers)
			c.say("a AUTHENTICATE " + begin + "\r\n")
			clients = append(clients, c)
		}
	}
	for _, c := range clients {
		c.hear("a " + deniedReply)
		c.close()
	}
	if b.metrics()["imapgate_upstream_connects_total"] > 0 {
		t.Error("a backend was asked")
	}
}
