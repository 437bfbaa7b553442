package proxy

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/parking"
	"imapgate/internal/testbed"
	"imapgate/proxy/relay"
	"imapgate/proxy/relay/mux/wire"
)

// An LF followed by more bytes is no line end, and the bytes after it are no command.
// Another program may have passed all of it as one argument.
func TestBareLFDoesNotSplitCommands(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr(), func(s *harnessConfig) { s.cfg.MaxBadCommands = 1 << 20 })
	const refused, lost = "a BAD Lines end in CRLF.", "* BYE Literal refused."
	for _, kind := range []string{"none", "starttls", "implicit"} {
		for text, want := range map[string]string{
			"a NOOP\nb NOOP\n":   refused,
			"a NOOP\nb NOOP\r\n": refused,
			"\n\n":               "* BAD Lines end in CRLF.", // no tag
			"\na NOOP\n":         "* BAD Lines end in CRLF.",
			"a LOGIN alice wrong\nb LOGIN alice right\n":                                        refused,
			"a LOGIN \"alice\nb LOGIN alice right\n\" x\r\n":                                    refused,
			"a LOGIN {5+}\r\nalice \"\nb LOGIN alice right\n":                                   refused,
			"a LOGIN {5}\nalice right\r\n":                                                      lost,
			"a LOGIN {5+}\nalice right\r\n":                                                     lost,
			"a LOGIN x\nb LOGIN {21+}\r\nx\r\nc LOGIN alice right\r\n":                          lost,
			"a LOGIN " + strings.Repeat("x", 512-len("a LOGIN \n")) + "\nb LOGIN alice right\n": refused, // the first read ends with the LF
		} {
			c := b.dialGreeted(kind)
			c.write(text)
			c.expectLine(want)
			if want == lost {
				c.expectEOF()
				continue
			}
			c.write("z NOOP\n")
			c.expectLine("z OK Nothing done.")
			c.close()
		}
	}
	if m.Open() > 0 || m.receivedText() != "" {
		t.Error("a login after an LF was tried")
	}
}

func TestSASLLineWithBareLFIsRefused(t *testing.T) {
	m := openTestBackend(t)
	b := newHarness(t, m.addr())
	c := b.dialGreeted("none")
	c.write("a AUTHENTICATE PLAIN\n")
	c.expectLine("+ ")
	c.write("AGFsaWNl\nb LOGIN alice right\r\n")
	c.expectLine("a BAD Lines end in CRLF.")
	c.write("z NOOP\n")
	c.expectLine("z OK Nothing done.")
	if r := b.lastRecord("login_refused", c); r.field("reason") != string(event.BadExchange) {
		t.Error(r)
	}
	if m.Open() > 0 {
		t.Error("a login after an LF was tried")
	}
}

// STARTTLS with a bare LF follows the same rule as with CRLF: bytes after it do not start
// TLS and are not read under it.
func TestBytesAfterSTARTTLSWithBareLFAreRefused(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxBadCommands = 1 << 20 })
	for _, extra := range []string{"b NOOP\r\n", "b LOGIN alice right\n", "\n", "\r\n", "b STARTTLS\n"} {
		c := b.dial("starttls")
		c.expectLine("* OK …")
		c.write("a STARTTLS\n" + extra)
		c.expectLine("a BAD Lines end in CRLF.")
		c.write("z CAPABILITY\n")
		c.expectLine("* CAPABILITY IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED") // still without TLS
		c.expectLine("z OK Capabilities listed.")
		c.close()
	}
	c := b.dial("starttls")
	c.expectLine("* OK …")
	_, _ = io.WriteString(c.nc, "a NOOP\r\nb STARTTLS\n\x16\x03\x01\x00\x05") // no line ends here
	c.expectLine("a OK Nothing done.")
	c.close()
	b.lastRecord("connection_refused", c)
}

// A request of another protocol that arrives line by line gets no answer.
func TestHTTPLineWithBareLFGetsNoAnswer(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr())
	for _, request := range []string{"GET / HTTP/1.0\n", "GET / HTTP/1.1\nHost: x\n\n", "POST / HTTP/1.1\r\nHost: x\n\n{}\n", "EHLO x\nQUIT {3}\n"} {
		c := b.dialGreeted("none")
		c.write(request)
		c.expectEOF()
		if why := b.lastRecord("connection_refused", c).field("reason"); why != string(event.WrongProtocol) {
			t.Errorf("%q: %s", request, why)
		}
	}
}

// A line that fills a buffer of any size to its last byte is a line: no byte has arrived
// after its LF.
func TestBufferSizedLineMayEndInLF(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxBadCommands = 1 << 20 })
	for _, kind := range []string{"none", "starttls", "implicit"} {
		c := b.dialGreeted(kind)
		for _, size := range []int{512, 1024, 2048, 4096, 8192} {
			for _, n := range []int{size - 1, size, size + 1} {
				c.write("a NOOP " + strings.Repeat("x", n-len("a NOOP \n")) + "\n")
				want := "a BAD Unexpected argument, or unknown command."
				if n > 8192 {
					want = "* BYE Line too long."
				}
				c.expectLine(want)
			}
		}
		c.expectEOF()
	}
}

// Bytes read too far at a login are cut where the client's bytes end, not where the buffer
// ended. The session must receive all that has arrived after an LF.
func TestLoginBufferKeepsFollowingBytes(t *testing.T) {
	first := "a LOGIN u p\r\nb SELECT "
	first += strings.Repeat("x", 512-len(first)-1) + "\n"
	const following = "c DELETE inbox\r\n"
	near, far := testbed.TCPPair(t)
	c := imap.NewConn(parking.NewBufferedConn(near.(*net.TCPConn)), imap.Commands, imap.MaxLongLine)
	c.TryReadFunc = parking.ReadAvailable
	if _, err := io.WriteString(far, first+following); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadCommand(imap.PreauthLimits, nil); err != nil {
		t.Fatal(err)
	}
	_, rest := c.Detach()
	w := new(wire.Conn)
	w.Open(near, rest, imap.Commands, &wire.Resources{Buffers: parking.NewBufferPool(), Clock: relay.NewClock()})
	if s, err := w.Next(); !errors.Is(err, imap.ErrLineEnding) {
		t.Errorf("%q, %v", s.Bytes, err)
	}
}

// The same for the buffer of a PROXY header.
func TestProxyHeaderBufferKeepsFollowingBytes(t *testing.T) {
	b := newHarness(t, openTestBackend(t).addr(), func(s *harnessConfig) { s.cfg.MaxBadCommands = 1 << 20 })
	for _, following := range []string{"", "b NOOP\r\n"} {
		c := b.dial("balanced-none")
		first := "PROXY TCP4 192.0.2.1 127.0.0.1 4711 143\r\na NOOP "
		first += strings.Repeat("x", maxProxyHeader-len(first)-1) + "\n"
		c.write(first + following)
		c.expectLine("* OK …")
		if following == "" {
			c.expectLine("a BAD Unexpected argument, or unknown command.")
		} else {
			c.expectLine("a BAD Lines end in CRLF.")
		}
		c.close()
	}
}
