package proxy

import (
	"io"
	"strings"
	"testing"

	"imapgate/internal/audit"
)

// An LF with bytes behind it is no line end, and what stands behind it no command:
// another program may have taken all of it for one argument.
func TestNothingBehindAnLFInsideALineIsACommand(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr(), func(s *setup) { s.cfg.BadCommands = 1 << 20 })
	const refused, lost = "* BAD Lines end in CRLF.", "* BYE Literal refused."
	for _, kind := range []string{"none", "starttls", "implicit"} {
		for say, want := range map[string]string{
			"a NOOP\nb NOOP\n":   refused,
			"a NOOP\nb NOOP\r\n": refused,
			"\n\n":               refused,
			"a LOGIN alice wrong\nb LOGIN alice right\n":                                        refused,
			"a LOGIN \"alice\nb LOGIN alice right\n\" x\r\n":                                    refused,
			"a LOGIN {5+}\r\nalice \"\nb LOGIN alice right\n":                                   refused,
			"a LOGIN {5}\nalice right\r\n":                                                      lost,
			"a LOGIN {5+}\nalice right\r\n":                                                     lost,
			"a LOGIN x\nb LOGIN {21+}\r\nx\r\nc LOGIN alice right\r\n":                          lost,
			"a LOGIN " + strings.Repeat("x", 512-len("a LOGIN \n")) + "\nb LOGIN alice right\n": refused, // the first read ends with the LF
		} {
			c := b.greeted(kind)
			c.say(say)
			c.hear(want)
			if want == lost {
				c.end()
				continue
			}
			c.say("z NOOP\n")
			c.hear("z OK Nothing done.")
			c.close()
		}
	}
	if m.open() > 0 || m.text() != "" {
		t.Error("a login that stood behind an LF was tried")
	}
}

func TestAnExchangesLineWithAnLFInsideIsRefusedWhole(t *testing.T) {
	m := openMailbox(t)
	b := newBed(t, m.addr())
	c := b.greeted("none")
	c.say("a AUTHENTICATE PLAIN\n")
	c.hear("+ ")
	c.say("AGFsaWNl\nb LOGIN alice right\r\n")
	c.hear("a BAD Lines end in CRLF.")
	c.say("z NOOP\n")
	c.hear("z OK Nothing done.")
	if r := b.lastRecord("login_refused", c); r.field("reason") != string(audit.BadExchange) {
		t.Error(r)
	}
	if m.open() > 0 {
		t.Error("a login that stood behind an LF was tried")
	}
}

// STARTTLS by LF alone is held to what STARTTLS by CRLF is: bytes that came with it
// start nothing, and are not read under TLS.
func TestBytesBehindSTARTTLSAndAnLFStartNothing(t *testing.T) {
	b := newBed(t, openMailbox(t).addr(), func(s *setup) { s.cfg.BadCommands = 1 << 20 })
	for _, extra := range []string{"b NOOP\r\n", "b LOGIN alice right\n", "\n", "\r\n", "b STARTTLS\n"} {
		c := b.dial("starttls")
		c.hear("* OK …")
		c.say("a STARTTLS\n" + extra)
		c.hear("* BAD Lines end in CRLF.")
		c.say("z CAPABILITY\n")
		c.hear("* CAPABILITY IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED") // in the clear, as before
		c.hear("z OK Capabilities listed.")
		c.close()
	}
	c := b.dial("starttls")
	c.hear("* OK …")
	_, _ = io.WriteString(c.nc, "a NOOP\r\nb STARTTLS\n\x16\x03\x01\x00\x05") // no line ends here
	c.hear("a OK Nothing done.")
	c.close()
	b.lastRecord("connection_refused", c)
}

// A request of another protocol that comes line by line gets no word.
func TestALineOfHTTPGetsNoAnswerByLFEither(t *testing.T) {
	b := newBed(t, openMailbox(t).addr())
	c := b.greeted("none")
	c.say("GET / HTTP/1.0\n")
	c.end()
	if why := b.lastRecord("connection_refused", c).field("reason"); why != string(audit.WrongProtocol) {
		t.Error(why)
	}
}
