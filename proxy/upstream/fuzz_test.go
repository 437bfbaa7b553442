package upstream

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/testbed"
)

// parseAsServer parses stream as a server does that knows only the grammar. It returns every
// command as tag, name and strings, and the offsets after which it had to send a continuation
// request.
func parseAsServer(stream string) (commands [][]string, continuations []int, ok bool) {
	total := len(stream)
	next := func() (string, bool) {
		line, rest, ok := strings.Cut(stream, "\r\n")
		stream = rest
		return line, ok && !strings.ContainsAny(line, "\r\n\x00")
	}
	for stream != "" {
		line, ok := next()
		if !ok {
			return nil, nil, false
		}
		words := strings.Split(line, " ")
		var cmd []string
		switch {
		case len(words) == 4 && words[1] == "AUTHENTICATE" && words[2] == "PLAIN":
			cmd = append(words[:2:2], words[3])
		case len(words) == 3 && words[1] == "AUTHENTICATE" && words[2] == "PLAIN":
			continuations = append(continuations, total-len(stream))
			response, ok := next()
			if !ok {
				return nil, nil, false
			}
			cmd = append(words[:2:2], response)
		case len(words) == 3 && words[1] == "LOGIN":
			cmd = words[:2:2]
			for literal := words[2]; ; {
				digits, isLiteral := strings.CutPrefix(literal, "{")
				digits, closed := strings.CutSuffix(digits, "}")
				digits, nonSync := strings.CutSuffix(digits, "+")
				n, err := strconv.Atoi(digits)
				if !isLiteral || !closed || err != nil || n < 0 || n > len(stream) {
					return nil, nil, false
				}
				if !nonSync {
					continuations = append(continuations, total-len(stream))
				}
				cmd = append(cmd, stream[:n])
				stream = stream[n:]
				line, ok := next()
				if !ok {
					return nil, nil, false
				}
				if line == "" {
					break
				}
				if literal, ok = strings.CutPrefix(line, " "); !ok {
					return nil, nil, false
				}
			}
		default:
			return nil, nil, false
		}
		commands = append(commands, cmd)
	}
	return commands, continuations, true
}

// FuzzUpstreamLogin checks that a server reads exactly one command with this name and
// password, or that the encoder rejects them.
func FuzzUpstreamLogin(f *testing.F) {
	f.Add("joe", "pw", uint8(0))
	f.Add("joe*x", "p\r\nw", uint8(0x13))
	f.Add("j\xc3\xa9 {5}", "\"\\ {3+}", uint8(0x0a))
	f.Add("x", strings.Repeat("p", 4097), uint8(0x04))
	f.Fuzz(func(t *testing.T, name, password string, flags uint8) {
		caps := "IMAP4rev1"
		for i, c := range []string{" AUTH=PLAIN", " SASL-IR", " LITERAL-", " LITERAL+"} {
			if flags>>i&1 == 1 {
				caps += c
			}
		}
		cfg := Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}
		req := Request{User: user(t, "joe"), Login: name, Password: identity.NewSecret(password)}
		if name == "" {
			name = "joe"
		}
		wantUser, wantPassword, wantAuthzid := name, password, ""
		if flags&0x10 != 0 {
			cfg.Login, cfg.Master = MasterLogin, Master{User: "boss", Password: identity.NewSecret(password), Style: SeparatorStyle}
			wantUser = name + "*boss"
			if flags&0x20 != 0 {
				cfg.Master.Style, wantUser, wantAuthzid = AuthzidStyle, "boss", name
			}
		}
		b := New(testbed.WithDefaults(cfg), Hooks{}, zap.NewNop())
		creds, err := b.cfg().buildCredentials(req)
		if err != nil {
			return
		}
		if strings.ContainsAny(name+password, "\r\n\x00") {
			t.Fatalf("%q %q was not refused", name, password)
		}
		lc := &loginConn{loginTag: "L1", caps: imap.ParseCaps(caps)}
		forms, err := creds.listForms(lc.caps)
		if err != nil {
			if wantAuthzid == "" {
				t.Fatal(err)
			}
			return
		}
		for _, form := range forms {
			var cmd loginCommand
			if err := creds.appendLogin(&cmd, form, lc); err != nil {
				t.Fatal(err)
			}
			checkServerReads(t, &cmd, []string{wantAuthzid, wantUser, wantPassword})
		}
	})
}

// checkServerReads fails unless a server reads one login in s, as want, and requests the parts
// in which it is sent.
func checkServerReads(t *testing.T, s *loginCommand, want []string) {
	commands, continuations, ok := parseAsServer(string(s.bytes))
	if command, response, found := strings.Cut(string(s.bytes), "AUTHENTICATE PLAIN\r\n"); found { // the response follows a continuation request
		commands, continuations, ok = parseAsServer(command + "AUTHENTICATE PLAIN " + response)
		continuations = append(continuations, len(command+"AUTHENTICATE PLAIN\r\n"))
	}
	if !ok || len(commands) != 1 || commands[0][0] != "L1" {
		t.Fatalf("%q is read as %q", s.bytes, commands)
	}
	got := commands[0][2:]
	if commands[0][1] == "AUTHENTICATE" {
		plain, err := base64.StdEncoding.DecodeString(got[0])
		if err != nil {
			t.Fatal(err)
		}
		got = strings.Split(string(plain), "\x00")
	} else {
		got = append([]string{""}, got...)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q, want %q", got, want)
	}
	if !strings.Contains(want[1], "{") && len(continuations) != len(s.partEnds) {
		t.Fatalf("asks at %v, waits at %v", continuations, s.partEnds)
	}
	for i, at := range continuations {
		if s.partEnds[i] != at {
			t.Fatalf("asks at %v, waits at %v", continuations, s.partEnds)
		}
	}
}

// scriptedConn is a connection to a backend that sends a fixed text, whatever it receives. In
// the text, {I}, {C}, {A} and {L} are the tags of commands received by then.
type scriptedConn struct {
	net.Conn  // nil: no other method is called
	text      []byte
	written   bytes.Buffer
	bytesRead int
	ready     []byte
	closed    bool
	loginOK   bool // sent a tagged OK with the login's tag
}

func (r *scriptedConn) Write(p []byte) (int, error) { return r.written.Write(p) }
func (r *scriptedConn) SetDeadline(time.Time) error { return nil }
func (r *scriptedConn) Close() error                { r.closed = true; return nil }

func (r *scriptedConn) Read(p []byte) (int, error) {
	if len(r.ready) == 0 {
		if len(r.text) == 0 {
			return 0, io.EOF
		}
		n := min(len(r.text), 1+len(r.text)%17)
		if i := bytes.IndexByte(r.text, '{'); i == 0 && len(r.text) > 2 && r.text[2] == '}' {
			r.ready, r.text = r.tag(r.text[1]), r.text[3:]
		} else {
			if i > 0 {
				n = min(n, i)
			}
			r.ready, r.text = r.text[:n], r.text[n:]
		}
		if len(r.ready) == 0 {
			r.ready = []byte("{}")
		}
	}
	n := copy(p, r.ready)
	r.ready = r.ready[n:]
	r.bytesRead += n
	return n, nil
}

// tag returns the last received tag that begins with letter.
func (r *scriptedConn) tag(letter byte) (tag []byte) {
	for line := range bytes.Lines(r.written.Bytes()) {
		if word, _, _ := bytes.Cut(line, []byte(" ")); word[0] == letter && len(word) == 14 {
			tag = word
		}
	}
	r.loginOK = r.loginOK || letter == 'L' && tag != nil && bytes.HasPrefix(bytes.ToUpper(r.text[3:]), []byte(" OK"))
	return tag
}

// FuzzBackendLogin checks that no backend makes a login panic, read beyond its budget, or
// succeed without an OK with the login's tag.
func FuzzBackendLogin(f *testing.F) {
	for _, s := range []string{
		"* OK [CAPABILITY IMAP4rev1 SASL-IR ID AUTH=PLAIN] hi\r\n{I} OK\r\n{L} OK [CAPABILITY X] in\r\n* OK x\r\n",
		"* OK hi\r\n* CAPABILITY IMAP4rev1 LITERAL+\r\n{C} OK\r\n{L} OK\r\n* CAPABILITY X\r\n{A} OK\r\n",
		"* OK [CAPABILITY IMAP4rev1] hi\r\n+ \r\n+ \r\n{L} NO [LIMIT] x\r\n",
		"* OK [CAPABILITY AUTH=PLAIN] hi\r\n* X {3}\r\nabc\r\n+ \r\n{L} OK [ALERT] in\r\n* PREAUTH\r\n",
		"* OK [CAPABILITY AUTH=OAUTHBEARER SASL-IR] hi\r\n+ e30=\r\n{L} NO x\r\n", "* OK [CAPABILITY AUTH=XOAUTH2] hi\r\n+ \r\n+ \r\n{L} OK [CAPABILITY X] in\r\n",
		"* PREAUTH hi\r\n", "* BYE\r\n", "* OK {4294967295}\r\n", "* OK hi\r\n* X {65537}\r\n",
	} {
		f.Add([]byte(s))
	}
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, req := range []Request{testRequest(t), tokenRequest(t)} {
			checkLogin(t, b, req, text)
		}
	})
}

// checkLogin runs one login at a backend that sends text.
func checkLogin(t *testing.T, b *Backend, req Request, text []byte) {
	t.Helper()
	creds, err := b.cfg().buildCredentials(req)
	if err != nil {
		t.Fatal(err)
	}
	r := &scriptedConn{text: text}
	conn, _, err := attempt{address: b.list()[0], cfg: b.cfg(), deadline: time.Now().Add(time.Minute)}.loginOn(context.Background(), r, req, creds)
	if r.bytesRead > maxTotal+maxLine {
		t.Fatalf("%d bytes were read", r.bytesRead)
	}
	if (conn == nil) == (err == nil) {
		t.Fatalf("%v, %v", conn, err)
	}
	if r.closed == (err == nil) {
		t.Fatalf("closed %v, %v", r.closed, err)
	}
	if err != nil {
		var refused *RefusedError
		if errors.As(publicError(err), &refused) && (responseCodes[refused.Code].reply != replyForwarded || sanitizeText(refused.Text) != refused.Text || !areSanitized(refused.Alerts)) {
			t.Fatalf("not fit to forward: %q", refused)
		}
		return
	}
	if !r.loginOK {
		t.Fatalf("%q was taken for a login", text)
	}
	if !conn.Caps().IsKnown() || !isOnlyUntagged(conn.buffered) || sanitizeText(conn.ok.Text) != conn.ok.Text || !areSanitized(conn.ok.Alerts) {
		t.Fatalf("%q %q %q", conn.Caps(), conn.buffered, conn.ok)
	}
}

// areSanitized reports whether alerts may reach a client.
func areSanitized(alerts []Alert) bool {
	return len(alerts) <= maxAlerts && !slices.ContainsFunc(alerts, func(a Alert) bool {
		return a.Name != "OK" && a.Name != "NO" && a.Name != "BAD" || a.Text == "" || sanitizeText(a.Text) != a.Text
	})
}
