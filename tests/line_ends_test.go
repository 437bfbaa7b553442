package tests

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// opensslClient is an interactive `openssl s_client`, whose lines end in LF.
type opensslClient struct {
	in  io.WriteCloser
	out *bufio.Reader
}

// startOpenSSL starts a client that ends with the test.
func startOpenSSL(t *testing.T, e endpoint) *opensslClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*testbed.Timeout)
	args := []string{"s_client", "-quiet", "-CAfile", e.caFile, "-verify_return_error", "-servername", "localhost", "-connect", e.address}
	if e.starttls {
		args = append(args, "-starttls", "imap")
	}
	cmd := exec.CommandContext(ctx, "openssl", args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // the exit status is meaningless
	})
	return &opensslClient{in, bufio.NewReader(out)}
}

// typeLine sends text and waits for a line that begins with answer. It returns the lines
// before that.
func (c *opensslClient) typeLine(t *testing.T, text, answer string) (before string) {
	t.Helper()
	if _, err := io.WriteString(c.in, text); err != nil {
		t.Fatal(err)
	}
	for {
		line, err := c.out.ReadString('\n')
		if err != nil {
			t.Fatalf("%q: %s%v, no %s", text, before, err, answer)
		}
		if strings.HasPrefix(line, answer) {
			return before
		}
		before += line
	}
}

// A session typed without -crlf works: before the login the gateway accepts LF. After it
// Dovecot does, or a gateway that reads commands, which sends CRLF to Dovecot.
func TestSessionTypedIntoOpenSSLWorks(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse, event.ModeResume} {
		g := startGateway(t, backend.CA, singleBackend(plainBackend(backend.Plain)+muxMode(mode, "")))
		for _, kind := range []event.TLSMode{event.ImplicitTLS, event.StartTLS} {
			t.Run(string(mode)+"/"+string(kind), func(t *testing.T) {
				user := fmt.Sprintf("typist-%s-%s", mode, kind)
				c := startOpenSSL(t, g.endpoint(kind))
				c.typeLine(t, "a capability\n", "a OK ")
				c.typeLine(t, "b login "+user+" pw\n", "b OK ")
				c.typeLine(t, "c append INBOX {16}\n", "+ ")
				c.typeLine(t, "Subject: x\n\nhey\n\n", "c OK ")
				if got := c.typeLine(t, "d select INBOX\n", "d OK "); !strings.Contains(got, "* 1 EXISTS") {
					t.Errorf("in INBOX there is\n%s", got)
				}
				if got := c.typeLine(t, "e fetch 1 body.peek[text]\n", "e OK "); !strings.Contains(got, "hey") {
					t.Errorf("the message is\n%s", got)
				}
				c.typeLine(t, "f search charset utf-8 subject {1}\n", "+ ")
				c.typeLine(t, "x\n", "f OK ")
				command := "f search subject "
				c.typeLine(t, command+strings.Repeat("x", 4096-len(command)-1)+"\n", "f OK ") // it fills a buffer
				c.typeLine(t, "g idle\n", "+ ")
				c.typeLine(t, "done\n", "g OK ")
				c.typeLine(t, "h noop\n", "h OK ")
				if got := c.typeLine(t, "i logout\n", "i OK "); !strings.Contains(got, "* BYE ") {
					t.Errorf("the responses to LOGOUT are\n%s", got)
				}
				testkit.Eventually(t, "the end to be in the audit log", func() bool { return len(g.records("session_ended", user)) == 1 })
				if r := g.records("session_ended", user)[0]; r.Reason != "client_logout" && mode != "splice" {
					t.Errorf("ended for %s", r.Reason)
				}
			})
		}
	}
}

// The module imap_starttls in the example configuration of Prometheus' blackbox exporter
// ends lines in LF and waits for a line that matches.
func TestTheBlackboxExportersExampleSucceeds(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	g := startGateway(t, backend.CA, singleBackend(plainBackend(backend.Plain)))
	e := g.endpoint(event.StartTLS)
	conn, err := net.DialTimeout("tcp", e.address, testbed.Timeout)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(testbed.Timeout)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(conn)
	for _, step := range []struct {
		expect, send string
		startTLS     bool
	}{
		{expect: "OK.*STARTTLS"},
		{send: ". STARTTLS"},
		{expect: "OK"},
		{startTLS: true},
		{send: ". capability"},
		{expect: "CAPABILITY IMAP4rev1"},
		{send: ". logout"},
		{expect: `^\. OK`},
	} {
		expected := regexp.MustCompile(step.expect)
		for step.expect != "" && !expected.Match(lines.Bytes()) {
			if !lines.Scan() {
				t.Fatalf("no %s: %v", step.expect, lines.Err())
			}
		}
		if step.send != "" {
			if _, err := fmt.Fprintf(conn, "%s\n", step.send); err != nil {
				t.Fatal(err)
			}
			lines.Scan() // not the line that matched before
		}
		if step.startTLS {
			secure := tls.Client(conn, e.tls)
			if err := secure.Handshake(); err != nil {
				t.Fatal(err)
			}
			conn, lines = secure, bufio.NewScanner(secure)
		}
	}
}
