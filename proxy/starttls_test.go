package proxy

import (
	"crypto/tls"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/tlsconf"
)

// The "STARTTLS, front side" rows of the attack catalogue.

func TestCommandsPipelinedAfterSTARTTLSAreNotRead(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	for _, extra := range []string{
		"b NOOP\r\n", "b LOGIN alice right\r\n", "b CAPABILITY\r\n", "b", "\r\n", "b LOGOUT\r\n",
		"\x16\x03\x01\x00\x05", strings.Repeat("b NOOP\r\n", 200),
	} {
		c := b.dial("starttls")
		c.expectLine("* OK …")
		c.write("a STARTTLS\r\n" + extra)
		if rest := c.readAll(); rest != "" {
			t.Errorf("%.20q after STARTTLS: received %q", extra, rest)
		}
		r := b.lastRecord("connection_refused", c)
		if why := r.field("reason"); why != string(event.StartTLSInjection) {
			t.Errorf("%.20q after STARTTLS: %v", extra, r)
		}
	}
	if m.Open() != 0 || strings.Contains(b.logs.String(), "login") {
		t.Error("an injected login was tried")
	}
}

func TestLatePlaintextBreaksHandshake(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, wait := range []time.Duration{0, time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond} {
		c := b.dial("starttls")
		c.expectLine("* OK …")
		c.write("a STARTTLS\r\n")
		<-time.After(wait)
		c.write("b NOOP\r\n")
		_ = c.handshake(&tls.Config{})
		c.expectNone("b OK", "b BAD")
		switch why := event.Reason(b.lastRecord("connection_refused", c).field("reason")); why {
		case event.StartTLSInjection, event.HandshakeFailed:
		default:
			t.Errorf("%v later: %s", wait, why)
		}
	}
}

// The reader takes 512 bytes first; the bytes after them are in the kernel.
func TestBytesBeyondBufferGoToTLS(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dial("starttls")
	c.expectLine("* OK …")
	const last = "a STARTTLS\r\n"
	c.write("x NOOP " + strings.Repeat("y", 512-len("x NOOP \r\n")-len(last)) + "\r\n" + last + "b NOOP\r\n")
	c.expectLine("x BAD …")
	c.expectNone("b OK", "b BAD")
	switch why := event.Reason(b.lastRecord("connection_refused", c).field("reason")); why {
	case event.StartTLSInjection, event.HandshakeFailed:
	default:
		t.Error(why)
	}
}

func TestSTARTTLSResetsAllButBadCommands(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	c := b.dial("starttls")
	c.expectLine("* OK …")
	c.write("a ID (\"name\" \"x\")\r\n")
	c.expectLine("* ID …")
	c.expectLine("a OK …")
	c.write("b FOO\r\n")
	c.expectLine("b BAD …")
	c.write("c LOGIN {5}\r\n") // half a command
	c.expectLine("c NO [PRIVACYREQUIRED] …")
	c.write("d STARTTLS\r\n")
	c.expectLine("d OK …")
	c.startTLS()
	c.write("alice NOOP\r\n") // a command, not the literal
	c.expectLine("alice OK Nothing done.")
	c.write("e FOO\r\n")
	c.expectLine("e BAD …")
	c.expectLine("* BYE Too many bad commands.")
	c.expectEOF()
}

func TestSTARTTLSInsideArgumentsIsIgnored(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, try := range []struct{ listener, command, reply string }{
		{"starttls", "a LOGIN {8+}\r\nSTARTTLS x\r\n", "a NO [PRIVACYREQUIRED] …"},
		{"starttls", "a STARTTLS x\r\n", "a BAD …"},
		{"starttls", "a STARTTLS {0+}\r\n\r\n", "a BAD …"},
		{"starttls", "a STARTTLS {0}\r\n", "a BAD …"},
		{"starttls", "a STARTTLS \r\n", "a BAD …"},
		{"none", "a AUTHENTICATE PLAIN\r\nb STARTTLS\r\n", "+ "},
		{"implicit", "a LOGIN {8+}\r\nSTARTTLS {0+}\r\n\r\n", "a NO [AUTHENTICATIONFAILED] …"},
	} {
		c := b.dial(try.listener)
		if try.listener == "implicit" {
			c.startTLS()
		}
		c.expectLine("* OK …")
		c.write(try.command)
		c.expectLine(try.reply)
		if try.reply == "+ " {
			c.expectLine("a BAD Invalid base64.")
		}
		c.write("z NOOP\r\n")
		c.expectLine("z OK Nothing done.") // in the same layer as before
		c.close()
	}
}

func TestSTARTTLSOnlyOnceAndBeforeLogin(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	for _, listener := range []string{"none", "implicit", "starttls"} {
		c := b.dialGreeted(listener)
		c.write("a STARTTLS\r\nb CAPABILITY\r\n")
		c.expectLine("a BAD TLS is not to be started here.")
		c.expectLine("* CAPABILITY IMAP4rev1 LITERAL+ SASL-IR ID AUTH=PLAIN AUTH=LOGIN")
		c.expectLine("b OK …")
		c.write("c LOGIN alice right\r\n")
		c.expectLine("* CAPABILITY IMAP4rev1 IDLE UNSELECT")
		c.expectLine("c OK [CAPABILITY IMAP4rev1 IDLE UNSELECT] Logged in.")
		c.write("d STARTTLS\r\n") // relayed to the backend, like everything after the login
		c.expectLine("d OK Done.")
		c.close()
	}
	if n := strings.Count(m.receivedText(), "d STARTTLS\n"); n != 3 {
		t.Errorf("%d backends were contacted", n)
	}
}

func TestCleartextLoginIsRefused(t *testing.T) {
	const canary = "CANARY-in-the-clear"
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	for _, command := range []string{
		"a LOGIN alice " + canary, "a LOGIN alice \"" + canary + "\"", "a LOGIN alice {19+}\r\n" + canary,
		"a AUTHENTICATE PLAIN AENBTkFSWQ==", "a AUTHENTICATE SCRAM-SHA-256 " + canary, "a AUTHENTICATE EXTERNAL =", "a LOGIN " + canary,
	} {
		c := b.dial("starttls")
		c.expectLine("* OK [CAPABILITY IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED] IMAP ready.")
		c.write(command + "\r\nb NOOP\r\n")
		c.expectLine("a NO [PRIVACYREQUIRED] STARTTLS must come first.")
		c.expectLine("b OK Nothing done.")
		c.close()
		if r := b.lastRecord("login_refused", c); r.field("user")+r.field("claimed") != "" || r.field("reason") != string(event.Cleartext) {
			t.Errorf("%s: %v", command, r)
		}
	}
	b.stopServer()
	text, err := os.ReadFile(b.path("audit"))
	testkit.NoError(t, err)
	if strings.Contains(string(text)+b.logs.String(), canary) || m.Open() != 0 {
		t.Error("the password went further")
	}
}

func TestWrongALPNIsRefusedInHandshake(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, listener := range []string{"implicit", "starttls"} {
		for protocols, ok := range map[string]bool{"http/1.1": false, "h2": false, "smtp": false, "h2 http/1.1": false, "imap": true, "h2 imap": true, "": true} {
			c := b.dial(listener)
			if listener == "starttls" {
				c.expectLine("* OK …")
				c.write("a STARTTLS\r\n")
				c.expectLine("a OK …")
			}
			err := c.handshake(&tls.Config{NextProtos: strings.Fields(protocols)})
			if ok != (err == nil) || !ok && !strings.Contains(err.Error(), "no application protocol") {
				t.Errorf("%s, ALPN %q: %v", listener, protocols, err)
			}
			c.close()
			if why := b.lastRecord("connection_refused", c).field("reason"); !ok && why != string(event.WrongALPN) {
				t.Errorf("%s, ALPN %q: recorded as %s", listener, protocols, why)
			}
		}
	}
}

func TestHTTPInsideTLSGetsNoAnswer(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	for _, request := range []string{
		"POST / HTTP/1.1\r\nHost: h\r\n\r\na LOGIN alice right\r\n", "GET /\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "OPTIONS NOOP\r\n",
	} {
		c := b.dialGreeted("implicit")
		c.write(request)
		if rest := c.readAll(); rest != "" {
			t.Errorf("%q: received %q", request, rest)
		}
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(event.WrongProtocol) {
			t.Errorf("%q: %s", request, why)
		}
	}
	if m.Open() != 0 {
		t.Error("the login in a request's body was tried")
	}
}

func TestHandshakeHasOneDeadline(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.TLSHandshakeTimeout = 300 * time.Millisecond })
	silent, slow := b.dial("implicit"), b.dial("implicit")
	later := b.dial("starttls")
	later.expectLine("* OK …")
	later.write("a STARTTLS\r\n")
	later.expectLine("a OK …")
	for range 40 { // single bytes do not move the deadline
		if _, err := slow.nc.Write([]byte{22}); err != nil {
			break
		}
		<-time.After(10 * time.Millisecond)
	}
	for _, c := range []*client{silent, slow, later} {
		c.expectNone()
		why := event.Reason(b.lastRecord("connection_refused", c).field("reason"))
		if why != event.HandshakeTimeout && (c != slow || why != event.HandshakeFailed) {
			t.Error(why)
		}
	}
}

func TestHandshakeFloodDoesNotBlockLogins(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	stop := make(chan struct{})
	done := make(chan struct{})
	go b.abortHandshakes(stop, done)
	for range 10 {
		c := b.dialGreeted("implicit")
		c.write("a LOGIN alice right\r\n")
		c.expectLine("a OK …")
		c.close()
	}
	close(stop)
	<-done
}

// abortHandshakes sends ClientHellos of every name and size and closes; it returns when
// stop is closed.
func (b *harness) abortHandshakes(stop, done chan struct{}) {
	defer close(done)
	hello := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 0x4000)...) // the maximum of a record
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		nc, err := net.Dial("tcp", b.addr("implicit"))
		if err != nil {
			b.t.Error(err)
			return
		}
		if i%2 == 0 {
			_, _ = nc.Write(hello)
		} else {
			_ = nc.SetDeadline(time.Now().Add(time.Second))
			_ = tls.Client(nc, &tls.Config{ServerName: strings.Repeat("x", 1+i%60) + ".example.org"}).Handshake() // untrusted certificate: the handshake fails
		}
		_ = nc.Close()
	}
}

func TestTLSResumptionEndsWithCertificateChange(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	cache := tls.NewLRUClientSessionCache(4)
	resumed := func() bool {
		c := b.dial("implicit")
		testkit.NoError(t, c.handshake(&tls.Config{ClientSessionCache: cache}))
		c.expectLine("* OK …") // reads the session ticket before it
		defer c.close()
		return c.nc.(*tls.Conn).ConnectionState().DidResume
	}
	if resumed() || !resumed() {
		t.Fatal("a session is not resumed when it should be")
	}
	cert, key, err := tlsconf.SelfSignedPEM("localhost")
	testkit.NoError(t, err)
	b.writeFile("cert.pem", string(cert))
	b.writeFile("key.pem", string(key))
	b.rootCAs.AppendCertsFromPEM(cert)
	if changed, err := b.deps.TLS.Reload(); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if resumed() {
		t.Error("a session of the old certificates was resumed")
	}
	if m := b.metrics(); m["imapgate_tls_handshakes_total"] != 3 {
		t.Error(m["imapgate_tls_handshakes_total"])
	}
}
