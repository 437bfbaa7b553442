package upstream

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

const (
	greetingFull = "> * OK [CAPABILITY IMAP4rev1 SASL-IR ID AUTH=PLAIN LITERAL+] hi"
	loginOK      = "> {L} OK [CAPABILITY IMAP4rev1 IDLE] in"
)

func TestALoginIsOneWriteWhereTheBackendAllowsIt(t *testing.T) {
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), greetingFull, "< ID", "< AUTHENTICATE", "> * ID NIL\r\n{I} OK", loginOK)
	if a.err != nil {
		t.Fatal(a.err)
	}
	if a.conn.User() != user(t, "joe@example.org") || a.conn.Caps().String() != "IMAP4rev1 IDLE" || a.result != "ok" {
		t.Errorf("%v %v %v", a.conn.User(), a.conn.Caps(), a.result)
	}
	if ok := a.conn.OK(); ok.Code != "" || ok.Text != "in" || len(ok.Alerts) > 0 {
		t.Errorf("%+v", ok)
	}
	nc, rest, _ := a.conn.Detach()
	if nc == nil || rest != nil {
		t.Fatalf("%v %q", nc, rest)
	}
	_ = nc.Close()
	a.finish()
	want := `^I[A-Z2-7]{13} ID \("x-originating-ip" "192\.0\.2\.7" "x-originating-port" "4711" "x-connected-ip" "198\.51\.100\.1" ` +
		`"x-connected-port" "993" "x-session-id" "s-1" "x-proxy-ttl" "4"\)\r\n` +
		`L[A-Z2-7]{13} AUTHENTICATE PLAIN ` + base64.StdEncoding.EncodeToString([]byte("\x00joe@example.org\x00"+canary)) + `\r\n$`
	if !regexp.MustCompile(want).Match(a.Plaintext.Bytes()) {
		t.Errorf("%q", a.Plaintext.String())
	}
}

func TestEveryLoginFormSucceeds(t *testing.T) {
	for name, tc := range map[string]struct {
		cfg   Config
		steps []string
	}{
		"PLAIN on request": {Config{}, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE PLAIN\r\n", "> +", "< AGpvZUBleGFtcGxl", loginOK}},
		"PLAIN on request, after ID": {Config{}, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN ID] hi", "< ID", "< AUTHENTICATE PLAIN\r\n", "> {I} BAD no\r\n+ ",
			"< AGpvZUBleGFtcGxl", loginOK}},
		"literals, on request":        {Config{}, []string{"> * OK [CAPABILITY IMAP4rev1] hi", "< LOGIN {15}\r\n", "> + go", "< joe@example.org {14}\r\n", "> + go", "< " + canary + "\r\n", loginOK}},
		"literals, LITERAL+":          {Config{}, []string{"> * OK [CAPABILITY IMAP4rev1 LITERAL+] hi", "< LOGIN {15+}\r\n", "< joe@example.org {14+}\r\n", "< " + canary + "\r\n", loginOK}},
		"literals, LITERAL-":          {Config{}, []string{"> * OK [CAPABILITY IMAP4rev2 LITERAL-] hi", "< LOGIN {15+}\r\n", "< joe@example.org {14+}\r\n", "< " + canary + "\r\n", loginOK}},
		"a bare banner":               {Config{}, []string{"> * OK hi", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN\r\n{C} OK", "< ID (\"x-originating-ip\"", "< AUTHENTICATE PLAIN A", "> {I} OK", loginOK}},
		"the list in the OK":          {Config{}, []string{"> * OK hi", "< CAPABILITY", "> {C} OK [CAPABILITY IMAP4rev1 LITERAL+] done", "< LOGIN {15+}\r\n", "< joe", "< CANARY", loginOK}},
		"an untagged list":            {Config{}, []string{greetingFull, "< ID", "> {I} OK", "< AUTHENTICATE", "> * CAPABILITY IMAP4rev1 X\r\n{L} OK in", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 IDLE\r\n{A} OK"}},
		"untagged lines and literals": {Config{}, []string{greetingFull, "< ID", "> * ID (\"name\" {5}\r\n\r\nX\r\n)\r\n* OK still here {99}\r\n{I} OK", "< AUTHENTICATE", "> * OK [ALERT] x\r\n" + loginOK[2:]}},
		"master by authzid":           {Config{Settings: Settings{Login: MasterLogin, Master: testMaster("authzid")}}, []string{greetingFull, "< ID", "< AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte("joe@example.org\x00boss\x00m-pw")), "> {I} OK", loginOK}},
		"master by separator":         {Config{Settings: Settings{Login: MasterLogin, Master: testMaster("separator")}}, []string{greetingFull, "< ID", "< AUTHENTICATE PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00joe@example.org*boss\x00m-pw")), "> {I} OK", loginOK}},
		"master by separator, LOGIN":  {Config{Settings: Settings{Login: MasterLogin, Master: testMaster("separator")}}, []string{"> * OK [CAPABILITY IMAP4rev1 LITERAL+] hi", "< LOGIN {20+}", "< joe@example.org*boss {4+}", "< m-pw", loginOK}},
		"no address by ID":            {Config{Settings: Settings{Forward: ForwardNone}}, []string{greetingFull, "< ID (\"x-session-id\" \"s-1\" \"x-proxy-ttl\" \"4\")\r\n", "< AUTHENTICATE", "> {I} OK", loginOK}},
	} {
		t.Run(name, func(t *testing.T) {
			tc.cfg.TLS = event.NoTLS
			a := logIn(t, tc.cfg, testRequest(t), tc.steps...)
			if a.err != nil {
				a.finish()
				t.Fatal(a.err, a.Err)
			}
			if got := a.conn.Caps().String(); got != "IMAP4rev1 IDLE" {
				t.Errorf("caps %q", got)
			}
			if _, rest := a.conn.nc, a.conn.buffered; rest != nil {
				t.Errorf("passed on: %q", rest)
			}
			a.finish()
			if a.Err != nil {
				t.Error(a.Err)
			}
			if tc.cfg.Login == MasterLogin && strings.Contains(a.Plaintext.String(), canary) {
				t.Error("the client's password was sent with a master login")
			}
		})
	}
}

func TestThePROXYHeaderIsSentFirst(t *testing.T) {
	header := "\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x12\x67\x03\xe1"
	local := "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
	for _, mode := range []event.TLSMode{event.NoTLS, event.ImplicitTLS} {
		for want, client := range map[string]Client{header: testRequest(t).Client, local: {Session: "s-1"}} {
			req := testRequest(t)
			req.Client = client
			a := logIn(t, Config{Settings: Settings{TLS: mode, Forward: ForwardProxy}}, req, "< \r\n", "< \r\n", "< \x00\r\n", "< QUIT\n", greetingFull, "fin")
			a.finish()
			if got := a.Plaintext.String(); !strings.HasPrefix(got, want) || mode == event.NoTLS && !strings.HasPrefix(got[len(want):], "I") {
				t.Errorf("%s: %q", mode, got)
			}
			if mode == event.NoTLS && !strings.Contains(a.Plaintext.String(), ` ID ("x-session-id" "s-1" "x-proxy-ttl" "4")`) {
				t.Errorf("%q", a.Plaintext.String())
			}
		}
	}
}

func testMaster(style string) Master {
	return Master{User: "boss", Password: identity.NewSecret("m-pw"), Style: style}
}

// The client's password was right when a master login is tried. Clients forget a password that
// is reported wrong.
func TestAFailedMasterLoginIsUnavailable(t *testing.T) {
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS, Login: MasterLogin, Master: testMaster("authzid")}}, testRequest(t),
		"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi", "< AUTHENTICATE", "> {L} NO [AUTHENTICATIONFAILED] wrong")
	if !errors.Is(a.err, ErrUnavailable) || errors.Is(a.err, ErrDenied) || a.result != "denied" {
		t.Errorf("%v %s", a.err, a.result)
	}
}

func TestAlertsBeforeTheAnswerAreForwarded(t *testing.T) {
	const cleartext = "> * OK [ALERT] in the clear"
	long := strings.Repeat("x", 2*maxText)
	for what, c := range map[string]struct {
		mode  event.TLSMode
		steps []string
		want  string
	}{
		"with the login":    {event.NoTLS, []string{greetingFull, "< ID", "> {I} OK", "< AUTHENTICATE", "> * NO [ALERT] Nearly full.\r\n* OK [ALERT] Down at noon."}, "* NO [ALERT] Nearly full.\r\n* OK [ALERT] Down at noon.\r\n"},
		"with ID":           {event.NoTLS, []string{greetingFull, "< ID", "> * bad [alert] One.\r\n{I} OK", "< AUTHENTICATE"}, "* BAD [ALERT] One.\r\n"},
		"in the greeting":   {event.ImplicitTLS, []string{"tls", "> * OK [ALERT] Down at noon.", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR\r\n{C} OK", "< AUTHENTICATE"}, "* OK [ALERT] Down at noon.\r\n"},
		"not before TLS":    {event.StartTLS, completeLogin(greetingStartTLS, "< STARTTLS", cleartext+"\r\n{S} OK begin"), ""},
		"as others' texts":  {event.NoTLS, []string{greetingFull, "< ID", "> {I} OK", "< AUTHENTICATE", "> * OK [ALERT] \x1b[2Jcall {5}\r\n* NO [ALERT] " + long}, "* OK [ALERT] ?[2Jcall (5)\r\n* NO [ALERT] " + long[:maxText] + "\r\n"},
		"within bounds":     {event.NoTLS, []string{greetingFull, "< ID", "> {I} OK", "< AUTHENTICATE", "> " + strings.Repeat("* OK [ALERT] x\r\n", 9) + "* OK x"}, strings.Repeat("* OK [ALERT] x\r\n", maxAlerts)},
		"with another code": {event.NoTLS, []string{greetingFull, "< ID", "> {I} OK", "< AUTHENTICATE", "> * OK [ALERTS] x\r\n* OK [WEBALERT x] x\r\n* ALERT x\r\n* OK [ALERT]"}, ""},
	} {
		for answer, refused := range map[string]bool{"OK [CAPABILITY IMAP4rev1] in": false, "NO [LIMIT] no": true} {
			steps := append(append([]string{}, c.steps...), "> {L} "+answer)
			if c.steps[len(c.steps)-1] == loginOK { // the script has its own login
				steps = append(append([]string{}, c.steps[:len(c.steps)-1]...), "> {L} "+answer)
			}
			a := logIn(t, Config{Settings: Settings{TLS: c.mode}}, testRequest(t), steps...)
			var got []Alert
			var refusal *RefusedError
			switch {
			case refused && errors.As(a.err, &refusal):
				got = refusal.Alerts
			case !refused && a.err == nil:
				got = a.conn.OK().Alerts
			default:
				t.Errorf("%s, %s: %v", what, answer, a.err)
			}
			a.finish()
			if text := string(OK{Alerts: got}.AppendUntagged(nil)); text != c.want || a.Err != nil {
				t.Errorf("%s, %s: %q, %v", what, answer, text, a.Err)
			}
		}
	}
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), greetingFull, "< ID", "> {I} OK", "< AUTHENTICATE", "> * NO [ALERT] Wrong.\r\n{L} NO [AUTHENTICATIONFAILED] no")
	if a.finish(); !errors.Is(a.err, ErrDenied) || errors.As(a.err, new(*RefusedError)) {
		t.Errorf("a denial with an alert: %v", a.err)
	}
}

func TestUntaggedResponsesAfterTheOKAreForwarded(t *testing.T) {
	for name, tc := range map[string]struct {
		steps []string
		rest  string
	}{
		"with a list":    {[]string{"> {L} OK [CAPABILITY IMAP4rev1] in\r\n* OK [ALERT] hear"}, "* OK [ALERT] hear\r\n"},
		"begun":          {[]string{">> {L} OK [CAPABILITY IMAP4rev1] in\r\n* OK [AL"}, "* OK [AL"},
		"hardly begun":   {[]string{">> {L} OK [CAPABILITY IMAP4rev1] in\r\n*"}, "*"},
		"a BYE":          {[]string{"> {L} OK [CAPABILITY IMAP4rev1] in\r\n* BYE out"}, "* BYE out\r\n"},
		"without a list": {[]string{"> * OK before\r\n{L} OK in\r\n* OK [ALERT] one", "< CAPABILITY", "> * OK two\r\n* CAPABILITY IMAP4rev1\r\n{A} OK done\r\n* OK three"}, "* OK [ALERT] one\r\n* OK two\r\n* OK three\r\n"},
	} {
		steps := append([]string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi", "< AUTHENTICATE"}, tc.steps...)
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), steps...)
		if a.err != nil {
			t.Errorf("%s: %v", name, a.err)
			continue
		}
		if nc, rest, _ := a.conn.Detach(); string(rest) != tc.rest || a.conn.Close() != nil || nc.Close() != nil {
			t.Errorf("%s: %q", name, rest)
		}
	}
}

// Literals are skipped until the login, so that a response with one cannot be forwarded.
func TestAResponseWithALiteralAfterTheOKFailsTheLogin(t *testing.T) {
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), "> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi", "< AUTHENTICATE",
		"> {L} OK in\r\n* 1 FETCH (X {3}\r\nabc)", "< CAPABILITY", "> * CAPABILITY IMAP4rev1\r\n{A} OK done")
	if !errors.Is(a.err, ErrUnavailable) || !errors.Is(a.err, errAfterLogin) {
		t.Errorf("%v", a.err)
	}
}

func TestTaggedResponsesAfterTheOKFailTheLogin(t *testing.T) {
	for _, after := range []string{"a1 OK done\r\n", "+ go\r\n", "\r\n", "\n", "*x\r\n", "* OK\r\nb OK\r\n", "* 1 FETCH (X {3}\r\nab)\r\n", "x"} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t),
			"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hi", "< AUTHENTICATE", ">> {L} OK [CAPABILITY IMAP4rev1] in\r\n"+after)
		if !errors.Is(a.err, ErrUnavailable) || !errors.Is(a.err, errAfterLogin) {
			t.Errorf("%q: %v", after, a.err)
		}
	}
}

func TestADetachedConnectionHasNoDeadlineAndIsNotClosed(t *testing.T) {
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), greetingFull, "< ID", "< AUTH", "> {I} OK\r\n"+loginOK[2:], "< NOOP", "> a OK", "fin")
	if a.err != nil {
		t.Fatal(a.err)
	}
	nc, _, _ := a.conn.Detach()
	if err := a.conn.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(nc, "a NOOP\r\n"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(nc); err != nil || string(b) != "a OK\r\n" {
		t.Errorf("%q %v", b, err)
	}
	_ = nc.Close()
}

func TestAForwardingLoopIsDetected(t *testing.T) {
	for name, tc := range map[string]struct {
		client Client
		cfg    Config
		loop   bool
	}{
		"the last hop":         {client: Client{TTL: 1}, loop: true},
		"less than that":       {client: Client{TTL: -3}, loop: true},
		"no hop count":         {client: Client{}},
		"a session of ours":    {client: Client{PeerSession: "gw1-77"}, cfg: Config{SessionPrefix: "gw1-"}, loop: true},
		"a session of another": {client: Client{PeerSession: "gw2-77", TTL: 2}, cfg: Config{SessionPrefix: "gw1-"}},
	} {
		req := testRequest(t)
		req.Client = tc.client
		tc.cfg.TLS = event.NoTLS
		a := logIn(t, tc.cfg, req, greetingFull, "< ID", "< AUTH", "> {I} OK\r\n"+loginOK[2:])
		if errors.Is(a.err, ErrLoop) != tc.loop || (a.err == nil) == tc.loop {
			t.Errorf("%s: %v", name, a.err)
		}
		if tc.client.TTL == 2 {
			a.finish()
			if !strings.Contains(a.Plaintext.String(), `"x-proxy-ttl" "1")`) {
				t.Errorf("%q", a.Plaintext.String())
			}
		}
	}
}

func TestTheClientIDIsForwardedWithinBounds(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	long := strings.Repeat("v", 250)
	c := Client{
		Addr: netip.MustParseAddrPort("[::ffff:192.0.2.7]:1"), Local: netip.MustParseAddrPort("[fe80::1%eth0]:2"), Session: "bad\r\nid",
		ID: [][2]string{{"name", `Mail "x\`}, {"x-originating-ip", "127.0.0.1"}, {"X-Proxy-TTL", "9"}, {"os", "a\r\nb"}, {"", "v"}, {"version", long}, {"os", "late"}},
	}
	got := string(b.cfg().appendID(nil, "I1", c, 3))
	want := `I1 ID ("name" "Mail \"x\\" "x-originating-ip" "192.0.2.7" "x-originating-port" "1" "x-connected-ip" "fe80::1" "x-connected-port" "2" "x-proxy-ttl" "3")` + "\r\n"
	if got != want {
		t.Errorf("%q", got)
	}
}

// RFC 2971 §3.3 allows 30 pairs, and a gateway after this one accepts no more.
func TestTheNumberOfIDPairsIsBounded(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	c := Client{Addr: netip.MustParseAddrPort("192.0.2.7:1"), Local: netip.MustParseAddrPort("192.0.2.8:2"), Session: "s-1"}
	for i := range 30 {
		c.ID = append(c.ID, [2]string{fmt.Sprint("f", i), "v"})
	}
	got := string(b.cfg().appendID(nil, "I1", c, 3))
	if n := strings.Count(got, `"`) / 4; n > 30 || !strings.Contains(got, `"x-originating-ip" "192.0.2.7"`) || !strings.Contains(got, `"x-proxy-ttl" "3"`) {
		t.Errorf("%d pairs: %s", n, got)
	}
	if n := strings.Count(FormatID(c.ID), `"`) / 4; n != 30 {
		t.Errorf("after the login: %d pairs", n)
	}
}
