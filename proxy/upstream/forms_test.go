package upstream

import (
	"errors"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/identity"
)

const (
	plainListed = "> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi"
	plainAsked  = "> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi"
	bad         = "BAD what"
)

// A backend that answers BAD may list a form that it does not take. The next is tried,
// and the credentials are shown twice at most.
func TestAFormThatIsNotTakenIsTriedInAnother(t *testing.T) {
	base64 := coded("\x00joe@example.org\x00" + canary)
	for what, c := range map[string]struct {
		who   Request
		steps []string
		err   error // nil: the login succeeds
		shown Verdict
	}{
		"no initial response": {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN " + base64, "> {L} " + bad,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64 + "\r\n", "> {M} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"no AUTHENTICATE": {request1(t), []string{plainAsked, "< AUTHENTICATE PLAIN\r\n", "> {L} " + bad,
			"< LOGIN {15}\r\n", "> + ", "< joe@example.org {14}\r\n", "> + ", "< " + canary + "\r\n", "> {M} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"neither": {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN " + base64, "> {L} " + bad, "< AUTHENTICATE PLAIN\r\n", "> {M} " + bad,
			"< LOGIN {15}\r\n", "> + ", "< joe@example.org {14}\r\n", "> + ", "< " + canary + "\r\n", "> {N} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"a token": {withToken(t), []string{"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi", "< AUTHENTICATE XOAUTH2 " + coded(sayXOAuth2), "> {L} " + bad,
			"< AUTHENTICATE XOAUTH2\r\n", "> + ", "< " + coded(sayXOAuth2), "> {M} OK [CAPABILITY IMAP4rev1] in"}, nil, VerdictRight},
		"a wrong password in the end": {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} " + bad,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64, "> {M} NO [AUTHENTICATIONFAILED] no"}, ErrDenied, VerdictWrong},
		"throttled behind a BAD": {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} " + bad,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64, "> {M} NO [UNAVAILABLE] too fast"}, errBad, VerdictUnclear},
		"shown twice": {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} " + bad,
			"< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64, "> {M} " + bad}, errBad, VerdictUnclear},
		"shown once, and no other form": {request1(t), []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN LOGINDISABLED] hi", "< AUTHENTICATE PLAIN\r\n", "> + ", "< " + base64,
			"> {L} " + bad}, errBad, VerdictUnclear},
		"a token is no password":  {withToken(t), []string{"> * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] hi", "< AUTHENTICATE XOAUTH2\r\n", "> {L} " + bad}, errBad, VerdictUnclear},
		"the backend has enough":  {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} " + bad, "< AUTHENTICATE PLAIN\r\n", "> * BYE enough", "fin"}, errBad, VerdictUnclear},
		"a BAD that says why":     {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} BAD User is authenticated but not connected."}, errBad, VerdictRight},
		"an answer to another":    {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} " + bad, "< AUTHENTICATE PLAIN\r\n", "> {L} OK in"}, errBad, VerdictUnclear},
		"an answer come too soon": {request1(t), []string{plainListed, "< AUTHENTICATE PLAIN ", "> {L} BAD what\r\n{L} OK in"}, errBad, VerdictUnclear},
	} {
		a := perform(t, Config{TLSMode: NoTLS}, c.who, c.steps...)
		a.finish()
		if !errors.Is(a.err, c.err) || VerdictOf(a.err) != c.shown || a.play.err != nil {
			t.Errorf("%s: %v, verdict %d, %v", what, a.err, VerdictOf(a.err), a.play.err)
		}
	}
	a := perform(t, Config{TLSMode: NoTLS, Login: MasterLogin, Master: master(AuthzidStyle)}, request1(t), plainAsked, "< AUTHENTICATE PLAIN\r\n", "> {L} "+bad)
	if a.finish(); !errors.Is(a.err, errBad) || a.play.err != nil {
		t.Errorf("a master's authorization identity has no other form: %v, %v", a.err, a.play.err)
	}
}

// What was understood once is where the next login begins, and BAD to that is first
// taken for a judgement.
func TestABackendIsShownEachFormNoMoreThanItNeeds(t *testing.T) {
	b := New(Config{TLSMode: NoTLS}, Hooks{}, zap.NewNop())
	const (
		asked  = "< AUTHENTICATE PLAIN\r\n"
		atOnce = "< AUTHENTICATE PLAIN A"
	)
	for i, steps := range [][]string{
		{plainListed, atOnce, "> {L} " + bad, asked, "> + ", "< ", "> {M} NO [AUTHENTICATIONFAILED] no"}, // about what a stranger has made up
		{plainListed, atOnce, "> {L} " + bad, asked, "> + ", "< ", "> {M} OK [CAPABILITY IMAP4rev1] in"}, // learned
		{plainListed, asked, "> + ", "< ", "> {L} OK [CAPABILITY IMAP4rev1] in"},
		{plainListed, asked, "> + ", "< ", "> {L} " + bad}, // a judgement, for all that is known
		{plainListed, asked, "> + ", "< ", "> {L} OK [CAPABILITY IMAP4rev1] in"},
		{plainListed, asked, "> {L} " + bad}, // the backend has changed
		{plainListed, asked, "> {L} " + bad, "< LOGIN {15}", "> {M} " + bad, atOnce, "> {N} OK [CAPABILITY IMAP4rev1] in"},
		{plainListed, atOnce, "> {L} " + bad},
		{plainListed, atOnce, "> {L} " + bad, asked, "> * BYE enough", "fin"}, // which teaches nothing, where that was right
		{plainListed, atOnce, "> {L} OK [CAPABILITY IMAP4rev1] in"},
		{"> * OK [CAPABILITY IMAP4rev1] hi", "< LOGIN {15}", "> {L} " + bad},
	} {
		p := &play{steps: steps}
		b.cfg.Address, b.addr = stage(t, p), New(Config{Address: "x"}, Hooks{}, zap.NewNop()).addr
		who := request1(t)
		who.Password = identity.NewSecret(canary)
		if conn, err := b.Login(t.Context(), who); err == nil {
			_ = conn.Close()
		}
		if <-p.done; p.err != nil {
			t.Fatalf("login %d: %v", i+1, p.err)
		}
	}
}

// While nobody was let in, each login begins behind the forms that were in vain.
func TestABackendThatEndsTheLoginBehindABadIsAskedInAnotherForm(t *testing.T) {
	b := New(Config{TLSMode: NoTLS}, Hooks{}, zap.NewNop())
	for i, steps := range [][]string{
		{plainListed, "< AUTHENTICATE PLAIN A", "> {L} " + bad, "< AUTHENTICATE PLAIN\r\n", "> * BYE enough", "fin"},
		{plainListed, "< AUTHENTICATE PLAIN\r\n", "> + ", "< ", "> {L} OK [CAPABILITY IMAP4rev1] in"},
	} {
		p := &play{steps: steps}
		b.cfg.Address, b.addr = stage(t, p), New(Config{Address: "x"}, Hooks{}, zap.NewNop()).addr
		if conn, err := b.Login(t.Context(), request1(t)); err == nil {
			_ = conn.Close()
		}
		if <-p.done; p.err != nil {
			t.Fatalf("login %d: %v", i+1, p.err)
		}
	}
}
