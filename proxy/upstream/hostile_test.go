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

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
)

const (
	greetClear = "> * OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] hi"
	capsTLS    = "> * CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN\r\n{C} OK done"
)

// hostile is a play and how the login must end.
type hostile struct {
	name   string
	mode   TLSMode
	steps  []string
	result string
	sent   bool // credentials may have gone out, under TLS where there is any
}

// leaks says whether what a backend heard holds a credential or the command for
// one; base64 has three forms of a text.
func leaks(heard string) bool {
	return strings.Contains(heard, "CANARY") || strings.Contains(heard, "Q0FOQVJZ") || strings.Contains(heard, "NBTkFSWS") ||
		strings.Contains(heard, "DQU5BUl") || strings.Contains(heard, " LOGIN ") || strings.Contains(heard, " AUTHENTICATE ")
}

func (h hostile) check(t *testing.T, cfg Config) {
	t.Helper()
	h.against(t, cfg, request1(t))
}

// against is check with a login of the caller's.
func (h hostile) against(t *testing.T, cfg Config, who Request) {
	t.Helper()
	cfg.TLSMode = h.mode
	h.hasten(&cfg)
	a := perform(t, cfg, who, h.steps...)
	h.judge(t, a)
}

// hasten has a backend that says nothing given up soon.
func (h hostile) hasten(cfg *Config) {
	if strings.Contains(h.name, "silence") {
		cfg.LoginTimeout, cfg.AnswerTimeout = 150*time.Millisecond, 150*time.Millisecond
	}
}

func (h hostile) judge(t *testing.T, a act) {
	t.Helper()
	a.finish()
	if h.result == "ok" {
		if a.err != nil || a.conn.rest != nil || a.play.err != nil || strings.Contains(fmt.Sprint(a.conn.OK()), "evil") {
			t.Errorf("%s: %v, %v", h.name, a.err, a.play.err)
		}
	} else if !errors.Is(a.err, ErrUnavailable) || errors.Is(a.err, ErrDenied) || a.conn != nil {
		t.Errorf("%s: %v", h.name, a.err)
	}
	if a.result != h.result {
		t.Errorf("%s: result %s, want %s; %v", h.name, a.result, h.result, a.err)
	}
	if h.mode == NoTLS && h.sent {
		return
	}
	if leaks(a.clear.String()) || !h.sent && leaks(a.secret.String()) {
		t.Errorf("%s: credentials were sent: %q %q", h.name, a.clear.String(), a.secret.String())
	}
	if a.err != nil && (len(a.err.Error()) > 2*maxText || clean(a.err.Error()[:min(maxText, len(a.err.Error()))]) != a.err.Error()[:min(maxText, len(a.err.Error()))]) {
		t.Errorf("%s: error is not fit to be logged: %q", h.name, a.err)
	}
}

// The fifty cases for IMAP in the published toolkit of attacks on STARTTLS, in
// its order: buffering 3, negotiation 19, tampering 21, spoofed texts 7.
func TestTheFiftyAttacksOnSTARTTLSFailClosed(t *testing.T) {
	cases := append(append(buffering(), negotiation()...), append(tampering(), spoofing()...)...)
	if len(cases) != 50 {
		t.Fatalf("%d cases", len(cases))
	}
	for _, h := range cases {
		h.check(t, Config{})
	}
}

// fullTLS is the end of a dialogue that goes well.
func fullTLS(steps ...string) []string {
	return append(steps, "tls", "< CAPABILITY", capsTLS, "< ID", "< AUTHENTICATE", "> {I} OK", loginOK)
}

func buffering() []hostile {
	return []hostile{
		{"B_1 capabilities behind the OK", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK begin\r\n* CAPABILITY IMAP4rev1 AUTH=PLAIN\r\nX OK done", "tls"}, "tls", false},
		{"B_2 a line before the OK", StartTLS, fullTLS(greetClear, "< STARTTLS", "> * OK [ALERT] evil\r\n{S} OK begin"), "ok", true},
		{"B_3 a line behind the OK", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK begin\r\n* OK [ALERT] evil", "tls"}, "tls", false},
	}
}

func negotiation() []hostile {
	cases := []hostile{
		{"D_1 no STARTTLS in the greeting", StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR ID] hi"}, "tls", false},
		{"D_2 an old protocol", StartTLS, []string{"> * OK [CAPABILITY IMAP4] hi"}, "tls", false},
		{"D_3 no STARTTLS in the list", StartTLS, []string{"> * OK hi", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=LOGIN\r\n{C} OK done"}, "tls", false},
		{"L_1_A a login referral without TLS", StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 LOGIN-REFERRALS] hi"}, "tls", false},
		{"L_1_B the server referred to", StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN AUTH=LOGIN] hi"}, "tls", false},
		{"M_1_A a mailbox referral in PREAUTH", StartTLS, []string{"> * PREAUTH [CAPABILITY IMAP4rev1 MAILBOX-REFERRALS] hi"}, "protocol", false},
		{"M_1_B the server referred to", StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"}, "tls", false},
		{"M_2_A PREAUTH with STARTTLS", StartTLS, []string{"> * PREAUTH [CAPABILITY IMAP4rev1 MAILBOX-REFERRALS STARTTLS] hi"}, "protocol", false},
		{"M_2_B a referral inside TLS", StartTLS, []string{greetClear, "< STARTTLS", "> * NO [REFERRAL imap://;AUTH=*@evil:243/inbox] evil\r\n{S} NO [REFERRAL imap://;AUTH=*@evil:243/] evil"}, "tls", false},
		{"O_1 BAD", StartTLS, []string{greetClear, "< STARTTLS", "> {S} BAD what"}, "tls", false},
		{"O_2 NO", StartTLS, []string{greetClear, "< STARTTLS", "> {S} NO not now"}, "tls", false},
		{"O_3 silence", StartTLS, []string{greetClear, "< STARTTLS", "hang"}, "timeout", false},
		{"O_4 a continuation request", StartTLS, []string{greetClear, "< STARTTLS", "> + go on"}, "protocol", false},
	}
	for i, caps := range []string{"IMAP4rev1 STARTTLS", "IMAP4rev1", "IMAP4rev1 STARTTLS LOGINDISABLED", "IMAP4rev1 STARTTLS AUTH=PLAIN AUTH=LOGIN",
		"IMAP4rev1 AUTH=PLAIN AUTH=LOGIN", "IMAP4rev1 STARTTLS AUTH=PLAIN"} {
		cases = append(cases, hostile{fmt.Sprintf("P_%d PREAUTH", i), StartTLS, []string{"> * PREAUTH [CAPABILITY " + caps + "] evil"}, "protocol", false})
	}
	return cases
}

func tampering() (cases []hostile) {
	for _, data := range []string{"LIST () \"/\" evil", "LSUB () \"/\" evil", "STATUS evil (MESSAGES 1)", "STATUS INBOX (UIDNEXT 9 UNSEEN 9)", "SEARCH 1 2 3", "FLAGS (evil)",
		"9 EXISTS", "9 RECENT", "1 EXPUNGE", "1 FETCH (FLAGS (evil) BODY[] {4}\r\nevil)"} {
		cases = append(cases,
			hostile{"behind the greeting: " + data, StartTLS, []string{greetClear + "\r\n* " + data, "< STARTTLS"}, "protocol", false},
			hostile{"before the OK: " + data, StartTLS, fullTLS(greetClear, "< STARTTLS", "> * "+data+"\r\n{S} OK begin"), "ok", true})
	}
	return append(cases, hostile{"a referral behind the greeting", StartTLS,
		[]string{greetClear + "\r\n* OK [REFERRAL imaps://evil:993] evil", "< STARTTLS"}, "protocol", false})
}

func spoofing() (cases []hostile) {
	for _, code := range []string{"ALERT", "BADCHARSET", "PARSE"} {
		cases = append(cases,
			hostile{"greeting NO " + code, StartTLS, []string{"> * NO [" + code + "] evil"}, "protocol", false},
			hostile{"greeting OK " + code, StartTLS, fullTLS("> * OK ["+code+"] evil", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 STARTTLS\r\n{C} OK", "< STARTTLS", "> {S} OK evil"), "ok", true})
	}
	return append(cases, hostile{"ALERT before the OK", StartTLS, fullTLS(greetClear, "< STARTTLS", "> * OK [ALERT] evil\r\n{S} OK evil"), "ok", true})
}

func TestAHostileBackendGetsNoCredentialAndNoMemory(t *testing.T) {
	line := strings.Repeat("x", 1<<20)
	for _, h := range []hostile{
		{"OK before STARTTLS was written", StartTLS, []string{greetClear + "\r\nS OK begin", "< STARTTLS"}, "protocol", false},
		{"OK of a tag that was guessed", StartTLS, []string{greetClear, "< STARTTLS", "> S1 OK begin"}, "protocol", false},
		{"a byte behind the OK", StartTLS, []string{greetClear, "< STARTTLS", ">> {S} OK begin\r\nx"}, "tls", false},
		{"a CRLF behind the OK", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK begin\r\n"}, "tls", false},
		{"no TLS behind the OK", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK begin", "< ", "> * OK hello"}, "tls", false},
		{"silence behind the OK", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK begin", "hang"}, "timeout", false},
		{"end behind the OK", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK begin", "fin"}, "tls", false},
		{"BYE to STARTTLS", StartTLS, []string{greetClear, "< STARTTLS", "> * BYE evil"}, "closed", false},
		{"end at STARTTLS", StartTLS, []string{greetClear, "< STARTTLS", "fin"}, "closed", false},
		{"PREAUTH inside TLS", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK", "tls", "> * PREAUTH evil"}, "protocol", false},
		{"LOGINDISABLED inside TLS", StartTLS, []string{greetClear, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 LOGINDISABLED\r\n{C} OK"}, "protocol", false},
		{"a list from the clear is forgotten", StartTLS, []string{"> * OK [CAPABILITY IMAP4rev1 STARTTLS AUTH=PLAIN SASL-IR ID] hi", "< STARTTLS", "> {S} OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] go", "tls",
			"< CAPABILITY", "> {C} OK none"}, "protocol", false},
		{"PREAUTH over implicit TLS", ImplicitTLS, []string{"tls", "> * PREAUTH evil"}, "protocol", false},
		{"no TLS", ImplicitTLS, []string{greetFull}, "tls", false},
		{"TLS silence", ImplicitTLS, []string{"hang"}, "timeout", false},

		{"greeting BYE", NoTLS, []string{"> * BYE [UNAVAILABLE] \x1b[2Jfull"}, "closed", false},
		{"greeting PREAUTH", NoTLS, []string{"> * PREAUTH [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"}, "protocol", false},
		{"greeting BAD", NoTLS, []string{"> * BAD hi"}, "protocol", false},
		{"greeting data", NoTLS, []string{"> * CAPABILITY IMAP4rev1 AUTH=PLAIN"}, "protocol", false},
		{"greeting tagged", NoTLS, []string{"> a OK hi"}, "protocol", false},
		{"greeting numbered", NoTLS, []string{"> * 5 OK hi"}, "protocol", false},
		{"greeting of another protocol", NoTLS, []string{"> 220 mail ESMTP"}, "protocol", false},
		{"greeting asks", NoTLS, []string{"> + OK"}, "protocol", false},
		{"greeting ends in LF", NoTLS, []string{">> * OK hi\n"}, "protocol", false},
		{"greeting cut", NoTLS, []string{">> * OK hi", "fin"}, "closed", false},
		{"greeting silence", NoTLS, []string{"hang"}, "timeout", false},
		{"greeting without end", NoTLS, []string{">> * OK " + line}, "protocol", false},
		{"greeting that looks like a literal", NoTLS, []string{"> * OK {4294967295}", "< CAPABILITY", "> {C} OK"}, "protocol", false},
		{"greeting and a tagged line", NoTLS, []string{greetFull + "\r\na OK"}, "protocol", false},
		{"greeting and half a tagged line", NoTLS, []string{">" + greetFull + "\r\nL"}, "protocol", false},
		{"no list", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> {C} OK"}, "protocol", false},
		{"no list but BAD", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> {C} BAD"}, "protocol", false},
		{"list and NO", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 AUTH=PLAIN\r\n{C} NO"}, "protocol", false},
		{"list silence", NoTLS, []string{"> * OK hi", "< CAPABILITY", "hang"}, "timeout", false},
		{"lists without end", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> " + strings.Repeat("* CAPABILITY IMAP4rev1\r\n", 1e5)}, "protocol", false},
		{"a literal of 4 GiB", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {4294967295}"}, "protocol", false},
		{"a literal of 64 KiB", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {65536}"}, "protocol", false},
		{"a literal beyond 63 bits", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {18446744073709551616}"}, "protocol", false},
		{"a malformed literal", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {05}"}, "protocol", false},
		{"a literal cut", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X {5}\r\nab", "fin"}, "closed", false},
		{"nesting", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> * X " + strings.Repeat("(", 9000)}, "protocol", false},
		{"a tag of another session", NoTLS, []string{"> * OK hi", "< CAPABILITY", "> a1 OK done"}, "protocol", false},
		{"LOGINDISABLED", NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 LOGINDISABLED] hi"}, "protocol", false},
		{"nothing but other mechanisms and LOGINDISABLED", NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=GSSAPI LOGINDISABLED SASL-IR] hi"}, "protocol", false},

		{"PLAIN is asked for and BYE said", NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE", "> * BYE"}, "closed", true},
		{"OK before the password", NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE", "> {L} OK [CAPABILITY IMAP4rev1] in"}, "protocol", true},
		{"OK before the literal", NoTLS, []string{"> * OK [CAPABILITY IMAP4rev1] hi", "< LOGIN", "> {L} OK [CAPABILITY IMAP4rev1] in"}, "protocol", true},
		{"asks for more than PLAIN", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK", "> + more"}, "protocol", true},
		{"asks at ID", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> + more"}, "protocol", true},
		{"OK of the login before that of ID", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", loginOK, "> {I} OK"}, "protocol", true},
		{"BYE to the login", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n* BYE evil"}, "closed", true},
		{"PREAUTH to the login", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n* PREAUTH evil"}, "protocol", true},
		{"silence at the login", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK", "hang"}, "timeout", true},
		{"a guessed OK", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\nL OK in"}, "protocol", true},
		{"the answer of ID twice", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{I} OK"}, "protocol", true},
		{"untagged lines without end", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n" + strings.Repeat("* OK x\r\n", 1e4)}, "protocol", true},
		{"BYE behind the OK", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in", "< CAPABILITY", "> * BYE"}, "closed", true},
		{"no list behind the OK", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in", "< CAPABILITY", "> {A} BAD"}, "protocol", true},
		{"asks behind the OK", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in\r\n+ ", "< CAPABILITY"}, "protocol", true},
		{"another answer behind the OK", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in\r\n{I} OK", "< CAPABILITY"}, "protocol", true},
		{"an end behind the OK", NoTLS, []string{greetFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n{L} OK in", "< CAPABILITY", "fin"}, "closed", true},
	} {
		h.check(t, Config{})
	}
}

// leaks may be blind; it has to see what a login without TLS sends.
func TestTheCanaryIsSeenWhereItIsSent(t *testing.T) {
	for _, caps := range []string{"AUTH=PLAIN", "AUTH=PLAIN SASL-IR", "LITERAL+"} {
		a := perform(t, Config{TLSMode: NoTLS}, request1(t), "> * OK [CAPABILITY IMAP4rev1 "+caps+"] hi", "< ", "> + ", "fin")
		a.finish()
		heard := strings.NewReplacer(" LOGIN ", "", " AUTHENTICATE ", "").Replace(a.clear.String())
		if !leaks(heard) {
			t.Errorf("%s: %q", caps, heard)
		}
	}
}

func TestACertificateThatDoesNotFitFailsClosed(t *testing.T) {
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
		for mode, steps := range map[TLSMode][]string{ImplicitTLS: {"tls", greetFull}, StartTLS: {greetClear, "< STARTTLS", "> {S} OK", "tls"}} {
			server, pool := certificate(t, change)
			a := performTLS(t, Config{TLSMode: mode}, request1(t), &play{steps: steps, tls: server}, pool)
			hostile{name, mode, steps, "tls", false}.judge(t, a)
			var invalid *tls.CertificateVerificationError
			if !errors.As(a.err, &invalid) {
				t.Errorf("%s: %v", name, a.err)
			}
		}
	}
	server, _ := certificate(t, nil)
	_, other := certificate(t, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(2) })
	a := performTLS(t, Config{TLSMode: ImplicitTLS}, request1(t), &play{steps: []string{"tls"}, tls: server}, other)
	hostile{"another authority", ImplicitTLS, nil, "tls", false}.judge(t, a)

	old, pool := certificate(t, nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	a = performTLS(t, Config{TLSMode: ImplicitTLS}, request1(t), &play{steps: []string{"tls"}, tls: old}, pool)
	hostile{"TLS 1.1", ImplicitTLS, nil, "tls", false}.judge(t, a)
}

// Nobody can turn the check of certificates off, wherever the configuration
// comes from.
func TestTLSSettingsAreOnlyEverRaised(t *testing.T) {
	given := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
	got := New(Config{Address: "mail.example:993", TLS: testbed.Fixed(given)}, Hooks{}, zap.NewNop()).cfg.clientTLS()
	if got.InsecureSkipVerify || got.MinVersion != tls.VersionTLS12 || got.ServerName != "mail.example" || given.ServerName != "" {
		t.Errorf("%+v", got)
	}
	given = &tls.Config{ServerName: "x", MinVersion: tls.VersionTLS13}
	if got := New(Config{Address: "mail.example:993", TLS: testbed.Fixed(given)}, Hooks{}, zap.NewNop()).cfg.clientTLS(); got.ServerName != "x" || got.MinVersion != tls.VersionTLS13 {
		t.Errorf("%+v", got)
	}
}

// A login has these points; a backend may go away at each of them.
func TestABackendMayEndAtEveryPointOfALogin(t *testing.T) {
	full := []string{greetClear, "< STARTTLS", "> {S} OK", "tls", "< CAPABILITY", ">> * CAPABILITY IMAP4rev1 ID", ">>  AUTH=PLAIN\r\n{C} OK\r\n",
		"< ID", "< AUTHENTICATE", "> * ID NIL\r\n{I} OK", "> + ", "< ", "> {L} OK in", "< CAPABILITY", "> * CAPABILITY IMAP4rev1", "> {A} OK"}
	h := hostile{name: "all of it", mode: StartTLS, steps: full, result: "ok", sent: true}
	h.check(t, Config{})
	for i := range full {
		for _, end := range []string{"fin", "rst"} {
			server, pool := certificate(t, nil)
			p := &play{steps: append(append([]string{}, full[:i]...), end), tls: server}
			// A reset may be seen while the connect is still under way; with less
			// than a second for it there is no other attempt.
			a := performTLS(t, Config{TLSMode: StartTLS, ConnectTimeout: time.Second}, request1(t), p, pool)
			a.finish()
			early := i < 2 && a.result == "unreachable"
			if !errors.Is(a.err, ErrUnavailable) || a.conn != nil || a.result != "closed" && a.result != "tls" && !early {
				t.Errorf("%s after %d: %v %s", end, i, a.err, a.result)
			}
			if leaks(a.clear.String()) || i < 11 && strings.Contains(a.secret.String(), "Q0FOQVJZ") {
				t.Errorf("%s after %d: credentials were sent", end, i)
			}
		}
	}
}

func TestAConnectionOfAFailedLoginIsClosed(t *testing.T) {
	for _, steps := range [][]string{{"> * BYE"}, {greetFull, "< ID", "< AUTH", "> {I} OK\r\n{L} NO"}, {greetFull, "< ID", "< AUTH", "> {I} OK\r\n{L} OK [CAPABILITY X] in\r\nx"}} {
		a := perform(t, Config{TLSMode: NoTLS}, request1(t), append(steps, "hang")...)
		<-a.done // the play hangs until the connection is gone
		if a.err == nil {
			t.Error(steps)
		}
	}
}

func secret(s string) identity.Secret { return identity.NewSecret(s) }

func TestWhatCannotBeSentIsRefusedBeforeAnythingIsDone(t *testing.T) {
	b := New(Config{Address: "127.0.0.1:1", TLSMode: NoTLS}, Hooks{OnConnect: func(string) { t.Error("connected") }}, zap.NewNop())
	boss := New(Config{Address: "127.0.0.1:1", TLSMode: NoTLS, Login: MasterLogin, Master: master(SeparatorStyle)}, Hooks{OnConnect: func(string) { t.Error("connected") }}, zap.NewNop())
	for _, bad := range []string{"u\r\nX DELETE INBOX", "u\n", "u\r", "u\x00", "\x1b", "u\x7f", "\t", strings.Repeat("x", 5000)} {
		for _, who := range []Request{
			{User: user(t, "joe"), Login: bad, Password: secret("pw")},
			{User: user(t, "joe"), Password: secret(bad)},
		} {
			if conn, err := b.Login(context.Background(), who); !errors.Is(err, ErrDenied) || conn != nil || strings.Contains(err.Error(), bad) {
				t.Errorf("%q: %v", bad, err)
			}
		}
	}
	for name, who := range map[string]Request{
		"nobody":      {Login: "joe", Password: secret("pw")},
		"no password": {User: user(t, "joe")},
	} {
		if _, err := b.Login(context.Background(), who); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"victim*boss", "*boss", "victim*", "a*b*c"} {
		if _, err := boss.Login(context.Background(), Request{User: user(t, "joe"), Login: name}); !errors.Is(err, ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	boss.cfg.Master.Password = secret("p\r\nw")
	boss.hooks.OnConnect = nil
	if _, err := boss.Login(context.Background(), Request{User: user(t, "joe")}); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a master password with CRLF: %v", err)
	}
}
