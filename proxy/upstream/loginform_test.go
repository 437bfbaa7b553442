package upstream

import (
	"errors"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

const (
	greetingSASLIR = "> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi"
	greetingPlain  = "> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"
	badAnswer      = "BAD what"
)

// A backend that answers BAD may list a form that it does not accept. The next one is tried,
// and the credentials are sent at most twice.
func TestARejectedFormIsRetriedInAnother(t *testing.T) {
	base64 := encodeBase64("\x00joe@example.org\x00" + canary)
	for what, c := range map[string]struct {
		req   Request
		steps []string
		err   error // nil: the login succeeds
		shown Verdict
	}{
		"no initial response": {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN " + base64, "> {L} " + badAnswer,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64 + "\r\n", "> {M} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"no AUTHENTICATE": {testRequest(t), []string{greetingPlain, "< AUTHENTICATE PLAIN\r\n", "> {L} " + badAnswer,
			"< LOGIN {15}\r\n", "> + ", "< joe@example.org {14}\r\n", "> + ", "< " + canary + "\r\n", "> {M} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"neither": {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN " + base64, "> {L} " + badAnswer, "< AUTHENTICATE PLAIN\r\n", "> {M} " + badAnswer,
			"< LOGIN {15}\r\n", "> + ", "< joe@example.org {14}\r\n", "> + ", "< " + canary + "\r\n", "> {N} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"a token": {tokenRequest(t), []string{"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi", "< AUTHENTICATE XOAUTH2 " + encodeBase64(xoauth2Payload), "> {L} " + badAnswer,
			"< AUTHENTICATE XOAUTH2\r\n", "> + ", "< " + encodeBase64(xoauth2Payload), "> {M} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"a wrong password in the end": {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} " + badAnswer,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64, "> {M} NO [AUTHENTICATIONFAILED] no"}, ErrDenied, VerdictWrong},
		"throttled after a BAD": {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} " + badAnswer,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64, "> {M} NO [UNAVAILABLE] too fast"}, errLoginBad, VerdictUnclear},
		"shown twice": {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} " + badAnswer,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64, "> {M} " + badAnswer}, errLoginBad, VerdictUnclear},
		"shown once, and no other form": {testRequest(t), []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN LOGINDISABLED] hi", "< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64,
			"> {L} " + badAnswer}, errLoginBad, VerdictUnclear},
		"a token is no password":  {tokenRequest(t), []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] hi", "< AUTHENTICATE XOAUTH2\r\n", "> {L} " + badAnswer}, errLoginBad, VerdictUnclear},
		"the backend has enough":  {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} " + badAnswer, "< AUTHENTICATE PLAIN\r\n", "> * BYE enough", "fin"}, errLoginBad, VerdictUnclear},
		"a BAD with a reason":     {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} BAD User is authenticated but not connected."}, errLoginBad, VerdictRight},
		"an answer to another":    {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} " + badAnswer, "< AUTHENTICATE PLAIN\r\n", "> {L} OK in"}, errLoginBad, VerdictUnclear},
		"an answer come too soon": {testRequest(t), []string{greetingSASLIR, "< AUTHENTICATE PLAIN ", "> {L} BAD what\r\n{L} OK in"}, errLoginBad, VerdictUnclear},
	} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, c.req, c.steps...)
		a.finish()
		if !errors.Is(a.err, c.err) || VerdictOf(a.err) != c.shown || a.Err != nil {
			t.Errorf("%s: %v, verdict %d, %v", what, a.err, VerdictOf(a.err), a.Err)
		}
	}
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS, Login: MasterLogin, Master: testMaster(AuthzidStyle)}}, testRequest(t), greetingPlain, "< AUTHENTICATE PLAIN\r\n", "> {L} "+badAnswer)
	if a.finish(); !errors.Is(a.err, errLoginBad) || a.Err != nil {
		t.Errorf("a master's authorization identity has no other form: %v, %v", a.err, a.Err)
	}
}

// A login begins with the form that was accepted last. A BAD to that form is taken to be about
// the credentials.
func TestTheAcceptedFormIsPreferredInLaterLogins(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	const (
		continuation    = "< AUTHENTICATE PLAIN\r\n"
		initialResponse = "< AUTHENTICATE PLAIN A"
	)
	for i, steps := range [][]string{
		{greetingSASLIR, initialResponse, "> {L} " + badAnswer, continuation, "> + ", "< ", "> {M} NO [AUTHENTICATIONFAILED] no"}, // may be about wrong credentials
		{greetingSASLIR, initialResponse, "> {L} " + badAnswer, continuation, "> + ", "< ", "> {M} OK [CAPABILITY IMAP4rev1] in"}, // accepted
		{greetingSASLIR, continuation, "> + ", "< ", "> {L} OK [CAPABILITY IMAP4rev1] in"},
		{greetingSASLIR, continuation, "> + ", "< ", "> {L} " + badAnswer}, // taken to be about the credentials
		{greetingSASLIR, continuation, "> + ", "< ", "> {L} OK [CAPABILITY IMAP4rev1] in"},
		{greetingSASLIR, continuation, "> {L} " + badAnswer}, // the backend has changed
		{greetingSASLIR, continuation, "> {L} " + badAnswer, "< LOGIN {15}", "> {M} " + badAnswer, initialResponse, "> {N} OK [CAPABILITY IMAP4rev1] in"},
		{greetingSASLIR, initialResponse, "> {L} " + badAnswer},
		{greetingSASLIR, initialResponse, "> {L} " + badAnswer, continuation, "> * BYE enough", "fin"}, // no effect, because an earlier login in that form succeeded
		{greetingSASLIR, initialResponse, "> {L} OK [CAPABILITY IMAP4rev1] in"},
		{"> * OK [CAPABILITY IMAP4rev1] hi", "< LOGIN {15}", "> {L} " + badAnswer},
	} {
		p := &testkit.Steps{Lines: steps}
		cfg := *b.cfg()
		cfg.Address = p.Start(t)
		b.Apply(cfg)
		req := testRequest(t)
		req.Password = identity.NewSecret(canary)
		if conn, err := b.Login(t.Context(), req); err == nil {
			_ = conn.Close()
		}
		if p.Wait(); p.Err != nil {
			t.Fatalf("login %d: %v", i+1, p.Err)
		}
	}
}

// Until a login succeeds, each login begins with the form after those rejected.
func TestTheNextLoginUsesAnotherFormAfterBADAndBYE(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	for i, steps := range [][]string{
		{greetingSASLIR, "< AUTHENTICATE PLAIN A", "> {L} " + badAnswer, "< AUTHENTICATE PLAIN\r\n", "> * BYE enough", "fin"},
		{greetingSASLIR, "< AUTHENTICATE PLAIN\r\n", "> + ", "< ", "> {L} OK [CAPABILITY IMAP4rev1] in"},
	} {
		p := &testkit.Steps{Lines: steps}
		cfg := *b.cfg()
		cfg.Address = p.Start(t)
		b.Apply(cfg)
		if conn, err := b.Login(t.Context(), testRequest(t)); err == nil {
			_ = conn.Close()
		}
		if p.Wait(); p.Err != nil {
			t.Fatalf("login %d: %v", i+1, p.Err)
		}
	}
}
