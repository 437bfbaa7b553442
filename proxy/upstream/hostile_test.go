package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

const (
	greetingStartTLS = "> * OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hi"
	capsTLS          = "> * CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN\r\n{C} OK done"
)

// attack is a script and how the login must end.
type attack struct {
	name    string
	mode    event.TLSMode
	steps   []string
	result  event.ConnectResult
	maySend bool // credentials may be sent, under TLS if the mode has it
}

// leaksCredentials reports whether what a backend received contains a credential or the
// command for one. Base64 has three forms of a text.
func leaksCredentials(received string) bool {
	return strings.Contains(received, "CANARY") || strings.Contains(received, "Q0FOQVJZ") || strings.Contains(received, "NBTkFSWS") ||
		strings.Contains(received, "DQU5BUl") || strings.Contains(received, " LOGIN ") || strings.Contains(received, " AUTHENTICATE ")
}

func (h attack) run(t *testing.T, cfg Config) {
	t.Helper()
	h.runWith(t, cfg, testRequest(t))
}

// runWith runs the attack with a configuration and a login.
func (h attack) runWith(t *testing.T, cfg Config, req Request) {
	t.Helper()
	cfg.TLS = h.mode
	h.shortenTimeouts(&cfg)
	a := logIn(t, cfg, req, h.steps...)
	h.checkResult(t, a)
}

// shortenTimeouts makes a login at a silent backend time out soon.
func (h attack) shortenTimeouts(cfg *Config) {
	if strings.Contains(h.name, "silence") {
		cfg.UpstreamLoginTimeout, cfg.AnswerTimeout = 150*time.Millisecond, 150*time.Millisecond
	}
}

func (h attack) checkResult(t *testing.T, a loginAttempt) {
	t.Helper()
	a.finish()
	if h.result == "ok" {
		if a.err != nil || a.conn.buffered != nil || a.Err != nil || strings.Contains(fmt.Sprint(a.conn.OK()), "evil") {
			t.Errorf("%s: %v, %v", h.name, a.err, a.Err)
		}
	} else if !errors.Is(a.err, ErrUnavailable) || errors.Is(a.err, ErrDenied) || a.conn != nil {
		t.Errorf("%s: %v", h.name, a.err)
	}
	if a.result != h.result {
		t.Errorf("%s: result %s, want %s; %v", h.name, a.result, h.result, a.err)
	}
	if h.mode == event.NoTLS && h.maySend {
		return
	}
	if leaksCredentials(a.Plaintext.String()) || !h.maySend && leaksCredentials(a.Encrypted.String()) {
		t.Errorf("%s: credentials were sent: %q %q", h.name, a.Plaintext.String(), a.Encrypted.String())
	}
	if a.err != nil && (len(a.err.Error()) > 2*maxText || sanitizeText(a.err.Error()[:min(maxText, len(a.err.Error()))]) != a.err.Error()[:min(maxText, len(a.err.Error()))]) {
		t.Errorf("%s: error is not fit to be logged: %q", h.name, a.err)
	}
}

// The fifty IMAP cases of the published toolkit of STARTTLS attacks, in its order: buffering
// 3, negotiation 19, tampering 21, spoofed texts 7.
func TestStartTLSAttacksFailClosed(t *testing.T) {
	cases := append(append(bufferingAttacks(), negotiationAttacks()...), append(tamperingAttacks(), spoofingAttacks()...)...)
	if len(cases) != 50 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, h := range cases {
		h.run(t, Config{})
	}
}

// completeLogin returns the remaining steps of a login that succeeds.
func completeLogin(steps ...string) []string {
	return append(steps, "tls", "< CAPABILITY", capsTLS, "< ID", "< AUTHENTICATE", "> {I} OK", loginOK)
}

func bufferingAttacks() []attack {
	return []attack{
		{"B_1 capabilities after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK begin\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nX OK done", "tls"}, "tls", false},
		{"B_2 a line before the OK", event.StartTLS, completeLogin(greetingStartTLS, "< STARTTLS", "> * OK [ALERT] evil\r\n{S} OK begin"), "ok", true},
		{"B_3 a line after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK begin\r\n* OK [ALERT] evil", "tls"}, "tls", false},
	}
}

func negotiationAttacks() []attack {
	cases := []attack{
		{"D_1 no STARTTLS in the greeting", event.StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR ID] hi"}, "tls", false},
		{"D_2 an old protocol", event.StartTLS, []string{"> * OK [CAPABILITY IMAP4] hi"}, "tls", false},
		{"D_3 no STARTTLS in the list", event.StartTLS, []string{"> * OK hi", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=LOGIN\r\n{C} OK done"}, "tls", false},
		{"L_1_A a login referral without TLS", event.StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 LOGIN-REFERRALS] hi"}, "tls", false},
		{"L_1_B the server referred to", event.StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=LOGIN] hi"}, "tls", false},
		{"M_1_A a mailbox referral in PREAUTH", event.StartTLS, []string{"> * PREAUTH [CAPABILITY IMAP4rev1 MAILBOX-REFERRALS] hi"}, "protocol", false},
		{"M_1_B the server referred to", event.StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"}, "tls", false},
		{"M_2_A PREAUTH with STARTTLS", event.StartTLS, []string{"> * PREAUTH [CAPABILITY IMAP4rev1 MAILBOX-REFERRALS STARTTLS] hi"}, "protocol", false},
		{"M_2_B a referral inside TLS", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> * NO [REFERRAL imap://;AUTH=*@evil:243/inbox] evil\r\n{S} NO [REFERRAL imap://;AUTH=*@evil:243/] evil"}, "tls", false},
		{"O_1 BAD", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} BAD what"}, "tls", false},
		{"O_2 NO", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} NO not now"}, "tls", false},
		{"O_3 silence", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "hang"}, "timeout", false},
		{"O_4 a continuation request", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> + go on"}, "protocol", false},
	}
	for i, caps := range []string{"IMAP4rev1 STARTTLS", "IMAP4rev1", "IMAP4rev1 STARTTLS LOGINDISABLED", "IMAP4rev1 STARTTLS AUTH=PLAIN AUTH=LOGIN",
		"IMAP4rev1 AUTH=PLAIN AUTH=LOGIN", "IMAP4rev1 STARTTLS AUTH=PLAIN"} {
		cases = append(cases, attack{fmt.Sprintf("P_%d PREAUTH", i), event.StartTLS, []string{"> * PREAUTH [CAPABILITY " + caps + "] evil"}, "protocol", false})
	}
	return cases
}

func tamperingAttacks() (cases []attack) {
	for _, data := range []string{"LIST () \"/\" evil", "LSUB () \"/\" evil", "STATUS evil (MESSAGES 1)", "STATUS INBOX (UIDNEXT 9 UNSEEN 9)", "SEARCH 1 2 3", "FLAGS (evil)",
		"9 EXISTS", "9 RECENT", "1 EXPUNGE", "1 FETCH (FLAGS (evil) BODY[] {4}\r\nevil)"} {
		cases = append(cases,
			attack{"after the greeting: " + data, event.StartTLS, []string{greetingStartTLS + "\r\n* " + data, "< STARTTLS"}, "protocol", false},
			attack{"before the OK: " + data, event.StartTLS, completeLogin(greetingStartTLS, "< STARTTLS", "> * "+data+"\r\n{S} OK begin"), "ok", true})
	}
	return append(cases, attack{"a referral after the greeting", event.StartTLS,
		[]string{greetingStartTLS + "\r\n* OK [REFERRAL imaps://evil:993] evil", "< STARTTLS"}, "protocol", false})
}

func spoofingAttacks() (cases []attack) {
	for _, code := range []string{"ALERT", "BADCHARSET", "PARSE"} {
		cases = append(cases,
			attack{"greeting NO " + code, event.StartTLS, []string{"> * NO [" + code + "] evil"}, "protocol", false},
			attack{"greeting OK " + code, event.StartTLS, completeLogin("> * OK ["+code+"] evil", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 STARTTLS\r\n{C} OK", "< STARTTLS", "> {S} OK evil"), "ok", true})
	}
	return append(cases, attack{"ALERT before the OK", event.StartTLS, completeLogin(greetingStartTLS, "< STARTTLS", "> * OK [ALERT] evil\r\n{S} OK evil"), "ok", true})
}

func TestAHostileBackendGetsNoCredentialsAndBoundedMemory(t *testing.T) {
	line := strings.Repeat("x", 1<<20)
	for _, h := range []attack{
		{"OK before STARTTLS was written", event.StartTLS, []string{greetingStartTLS + "\r\nS OK begin", "< STARTTLS"}, "protocol", false},
		{"OK of a tag that was guessed", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> S1 OK begin"}, "protocol", false},
		{"a byte after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", ">> {S} OK begin\r\nx"}, "tls", false},
		{"a CRLF after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK begin\r\n"}, "tls", false},
		{"no TLS after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK begin", "< ", "> * OK hello"}, "tls", false},
		{"silence after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK begin", "hang"}, "timeout", false},
		{"end after the OK", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK begin", "fin"}, "tls", false},
		{"BYE to STARTTLS", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> * BYE evil"}, "closed", false},
		{"end at STARTTLS", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "fin"}, "closed", false},
		{"PREAUTH inside TLS", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "> * PREAUTH evil"}, "protocol", false},
		{"LOGINDISABLED inside TLS", event.StartTLS, []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 LOGINDISABLED\r\n{C} OK"}, "protocol", false},
		{"a list from the clear is forgotten", event.StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR ID] hi", "< STARTTLS", "> {S} OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] go", "tls",
			"< CAPABILITY", "> {C} OK none"}, "protocol", false},
		{"PREAUTH over implicit TLS", event.ImplicitTLS, []string{"tls", "> * PREAUTH evil"}, "protocol", false},
		{"no TLS", event.ImplicitTLS, []string{greetingFull}, "tls", false},
		{"TLS silence", event.ImplicitTLS, []string{"hang"}, "timeout", false},

		{"greeting BYE", event.NoTLS, []string{"> * BYE [UNAVAILABLE] \x1b[2Jfull"}, "closed", false},
		{"greeting PREAUTH", event.NoTLS, []string{"> * PREAUTH [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"}, "protocol", false},
		{"greeting BAD", event.NoTLS, []string{"> * BAD hi"}, "protocol", false},
		{"greeting data", event.NoTLS, []string{"> * CAPABILITY IMAP4rev1 AUTH=PLAIN"}, "protocol", false},
		{"greeting tagged", event.NoTLS, []string{"> a OK hi"}, "protocol", false},
		{"greeting numbered", event.NoTLS, []string{"> * 5 OK hi"}, "protocol", false},
		{"greeting of another protocol", event.NoTLS, []string{"> 220 mail ESMTP"}, "protocol", false},
		{"greeting asks", event.NoTLS, []string{"> + OK"}, "protocol", false},
		{"greeting ends in LF", event.NoTLS, []string{">> * OK hi\n"}, "protocol", false},
		{"greeting cut", event.NoTLS, []string{">> * OK hi", "fin"}, "closed", false},
		{"greeting silence", event.NoTLS, []string{"hang"}, "timeout", false},
		{"greeting without end", event.NoTLS, []string{">> * OK " + line}, "protocol", false},
		{"greeting that looks like a literal", event.NoTLS, []string{"> * OK {4294967295}", "< CAPABILITY", "> {C} OK"}, "protocol", false},
		{"greeting and a tagged line", event.NoTLS, []string{greetingFull + "\r\na OK"}, "protocol", false},
		{"greeting and half a tagged line", event.NoTLS, []string{">" + greetingFull + "\r\nL"}, "protocol", false},
		{"no list", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> {C} OK"}, "protocol", false},
		{"no list but BAD", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> {C} BAD"}, "protocol", false},
		{"list and NO", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n{C} NO"}, "protocol", false},
		{"list silence", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "hang"}, "timeout", false},
		{"lists without end", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> " + strings.Repeat("* CAPABILITY IMAP4rev1\r\n", 1e5)}, "protocol", false},
		{"a literal of 4 GiB", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {4294967295}"}, "protocol", false},
		{"a literal of 64 KiB", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {65536}"}, "protocol", false},
		{"a literal beyond 63 bits", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {18446744073709551616}"}, "protocol", false},
		{"a malformed literal", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {05}"}, "protocol", false},
		{"a literal cut", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {5}\r\nab", "fin"}, "closed", false},
		{"nesting", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X " + strings.Repeat("(", 9000)}, "protocol", false},
		{"a tag of another session", event.NoTLS, []string{"> * OK hi", "< CAPABILITY", "> a1 OK done"}, "protocol", false},
		{"LOGINDISABLED", event.NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi"}, "protocol", false},
		{"nothing but other mechanisms and LOGINDISABLED", event.NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=GSSAPI LOGINDISABLED SASL-IR] hi"}, "protocol", false},

		{"a continuation request for PLAIN, then BYE", event.NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE", "> * BYE"}, "closed", true},
		{"OK before the password", event.NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE", "> {L} OK [CAPABILITY IMAP4rev1] in"}, "protocol", true},
		{"OK before the literal", event.NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1] hi", "< LOGIN", "> {L} OK [CAPABILITY IMAP4rev1] in"}, "protocol", true},
		{"asks for more than PLAIN", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK", "> + more"}, "protocol", true},
		{"asks at ID", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> + more"}, "protocol", true},
		{"OK of the login before that of ID", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", loginOK, "> {I} OK"}, "protocol", true},
		{"BYE to the login", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n* BYE evil"}, "closed", true},
		{"PREAUTH to the login", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n* PREAUTH evil"}, "protocol", true},
		{"silence at the login", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK", "hang"}, "timeout", true},
		{"a guessed OK", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\nL OK in"}, "protocol", true},
		{"the answer of ID twice", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{I} OK"}, "protocol", true},
		{"untagged lines without end", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n" + strings.Repeat("* OK x\r\n", 1e4)}, "protocol", true},
		{"BYE after the OK", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in", "< CAPABILITY", "> * BYE"}, "closed", true},
		{"no list after the OK", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in", "< CAPABILITY", "> {A} BAD"}, "protocol", true},
		{"a continuation request after the OK", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in\r\n+ ", "< CAPABILITY"}, "protocol", true},
		{"another answer after the OK", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in\r\n{I} OK", "< CAPABILITY"}, "protocol", true},
		{"an end after the OK", event.NoTLS, []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in", "< CAPABILITY", "fin"}, "closed", true},
	} {
		h.run(t, Config{})
	}
}

// leaksCredentials must detect what a login without TLS sends.
func TestLeakedCredentialsAreDetected(t *testing.T) {
	for _, caps := range []string{"AUTH=PLAIN", "AUTH=PLAIN SASL-IR", "LITERAL+"} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), "> * OK [CAPABILITY IMAP4rev1 "+caps+"] hi", "< ", "> + ", "fin")
		a.finish()
		received := strings.NewReplacer(" LOGIN ", "", " AUTHENTICATE ", "").Replace(a.Plaintext.String())
		if !leaksCredentials(received) {
			t.Errorf("%s: %q", caps, received)
		}
	}
}

func TestAnInvalidCertificateFailsClosed(t *testing.T) {
	for name, change := range map[string]func(*x509.Certificate){
		"expired":       func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
		"not yet valid": func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) },
		"another name":  func(c *x509.Certificate) { c.IPAddresses = nil; c.DNSNames = []string{"evil\x1b[2J.example"} },
		"many names": func(c *x509.Certificate) {
			c.IPAddresses = nil
			for i := range 2000 {
				c.DNSNames = append(c.DNSNames, fmt.Sprintf("host%d.example", i))
			}
		},
	} {
		for mode, steps := range map[event.TLSMode][]string{event.ImplicitTLS: {"tls", greetingFull}, event.StartTLS: {greetingStartTLS, "< STARTTLS", "> {S} OK", "tls"}} {
			server, pool := certificate(t, change)
			a := logInTLS(t, Config{Settings: Settings{TLS: mode}}, testRequest(t), &testkit.Steps{Lines: steps, TLS: server}, pool)
			attack{name, mode, steps, "tls", false}.checkResult(t, a)
			var invalid *tls.CertificateVerificationError
			if !errors.As(a.err, &invalid) {
				t.Errorf("%s: %v", name, a.err)
			}
		}
	}
	server, _ := certificate(t, nil)
	_, other := certificate(t, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(2) })
	a := logInTLS(t, Config{Settings: Settings{TLS: event.ImplicitTLS}}, testRequest(t), &testkit.Steps{Lines: []string{"tls"}, TLS: server}, other)
	attack{"another authority", event.ImplicitTLS, nil, "tls", false}.checkResult(t, a)

	old, pool := certificate(t, nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	a = logInTLS(t, Config{Settings: Settings{TLS: event.ImplicitTLS}}, testRequest(t), &testkit.Steps{Lines: []string{"tls"}, TLS: old}, pool)
	attack{"TLS 1.1", event.ImplicitTLS, nil, "tls", false}.checkResult(t, a)
}

// No configuration disables the verification of certificates.
func TestTLSSettingsAreNeverLowered(t *testing.T) {
	given := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
	got := New(testbed.WithDefaults(Config{Settings: Settings{Address: "mail.example:993"}, TLSConfig: testbed.StaticTLS(given)}), Hooks{}, zap.NewNop()).cfg().clientTLS("mail.example")
	if got.InsecureSkipVerify || got.MinVersion != tls.VersionTLS12 || got.ServerName != "mail.example" || given.ServerName != "" {
		t.Errorf("%+v", got)
	}
	given = &tls.Config{ServerName: "x", MinVersion: tls.VersionTLS13}
	if got := New(testbed.WithDefaults(Config{Settings: Settings{Address: "mail.example:993"}, TLSConfig: testbed.StaticTLS(given)}), Hooks{}, zap.NewNop()).cfg().clientTLS("mail.example"); got.ServerName != "x" || got.MinVersion != tls.VersionTLS13 {
		t.Errorf("%+v", got)
	}
}

// A backend may close at each of these points of a login.
func TestABackendMayCloseAtEveryPointOfALogin(t *testing.T) {
	full := []string{greetingStartTLS, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", ">> * CAPABILITY IMAP4rev1 ID", ">>  AUTH=PLAIN\r\n{C} OK\r\n",
		"< ID", "< AUTHENTICATE", "> * ID NIL\r\n{I} OK", "> + ", "< ", "> {L} OK in", "< CAPABILITY", "> * CAPABILITY IMAP4rev1", "> {A} OK"}
	h := attack{name: "all of it", mode: event.StartTLS, steps: full, result: "ok", maySend: true}
	h.run(t, Config{})
	for i := range full {
		for _, end := range []string{"fin", "rst"} {
			server, pool := certificate(t, nil)
			p := &testkit.Steps{Lines: append(append([]string{}, full[:i]...), end), TLS: server}
			// A reset may arrive while the connect is in progress. With less than a second for
			// it there is no second attempt.
			a := logInTLS(t, Config{Settings: Settings{TLS: event.StartTLS}, LoginSettings: LoginSettings{UpstreamConnectTimeout: time.Second}}, testRequest(t), p, pool)
			a.finish()
			early := i < 2 && a.result == "unreachable"
			if !errors.Is(a.err, ErrUnavailable) || a.conn != nil || a.result != "closed" && a.result != "tls" && !early {
				t.Errorf("%s after %d: %v %s", end, i, a.err, a.result)
			}
			if leaksCredentials(a.Plaintext.String()) || i < 11 && strings.Contains(a.Encrypted.String(), "Q0FOQVJZ") {
				t.Errorf("%s after %d: credentials were sent", end, i)
			}
		}
	}
}

func TestAConnectionOfAFailedLoginIsClosed(t *testing.T) {
	for _, steps := range [][]string{{"> * BYE"}, {greetingFull, "< ID", "< AUTH", "> {I} OK\r\n{L} NO"}, {greetingFull, "< ID", "< AUTH", "> {I} OK\r\n{L} OK [CAPABILITY X] in\r\nx"}} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), append(steps, "hang")...)
		a.Wait() // the script runs until the connection is closed
		if a.err == nil {
			t.Error(steps)
		}
	}
}

func testSecret(s string) identity.Secret { return identity.NewSecret(s) }

func TestUnsendableCredentialsAreDeniedBeforeConnecting(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{OnConnect: func(event.ConnectResult) { t.Error("connected") }}, zap.NewNop())
	master := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS, Login: MasterLogin, Master: testMaster(SeparatorStyle)}}), Hooks{OnConnect: func(event.ConnectResult) { t.Error("connected") }}, zap.NewNop())
	for _, bad := range []string{"u\r\nX DELETE INBOX", "u\n", "u\r", "u\x00", "\x1b", "u\x7f", "\t", strings.Repeat("x", 5000)} {
		for _, req := range []Request{
			{User: user(t, "joe"), Login: bad, Password: testSecret("pw")},
			{User: user(t, "joe"), Password: testSecret(bad)},
		} {
			if conn, err := b.Login(context.Background(), req); !errors.Is(err, ErrDenied) || conn != nil || strings.Contains(err.Error(), bad) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
	for name, req := range map[string]Request{
		"no user":     {Login: "joe", Password: testSecret("pw")},
		"no password": {User: user(t, "joe")},
	} {
		if _, err := b.Login(context.Background(), req); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"victim*boss", "*boss", "victim*", "a*b*c"} {
		if _, err := master.Login(context.Background(), Request{User: user(t, "joe"), Login: name}); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	master.cfg().Master.Password = testSecret("p\r\nw")
	master.hooks.OnConnect = nil
	if _, err := master.Login(context.Background(), Request{User: user(t, "joe")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a master password with CRLF: %v", err)
	}
}
