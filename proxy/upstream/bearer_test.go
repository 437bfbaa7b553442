package upstream

import (
	"encoding/base64"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/imap"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// tokenRequest is testRequest with a token in place of the password.
func tokenRequest(t testing.TB) Request {
	t.Helper()
	req := testRequest(t)
	req.Password, req.Token = identity.Secret{}, identity.NewSecret(canary)
	return req
}

func encodeBase64(message string) string { return base64.StdEncoding.EncodeToString([]byte(message)) }

const (
	bearerPayload  = "n,a=joe@example.org,\x01auth=Bearer " + canary + "\x01\x01"
	xoauth2Payload = "user=joe@example.org\x01auth=Bearer " + canary + "\x01\x01"
	greetingOAuth  = "> * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=PLAIN AUTH=XOAUTH2 AUTH=OAUTHBEARER] hi"
)

func TestATokenIsSentByTheMechanismOfTheBackend(t *testing.T) {
	for what, steps := range map[string][]string{
		"both":             {greetingOAuth, "< ID", "< AUTHENTICATE OAUTHBEARER " + encodeBase64(bearerPayload) + "\r\n", "> {I} OK", loginOK},
		"the old one":      {"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=XOAUTH2] hi", "< AUTHENTICATE XOAUTH2 " + encodeBase64(xoauth2Payload) + "\r\n", loginOK},
		"on request":       {"> * OK [CAPABILITY IMAP4rev1 AUTH=OAUTHBEARER] hi", "< AUTHENTICATE OAUTHBEARER\r\n", "> + ", "< " + encodeBase64(bearerPayload) + "\r\n", loginOK},
		"old, on request":  {"> * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2 LOGINDISABLED] hi", "< AUTHENTICATE XOAUTH2\r\n", "> + ", "< " + encodeBase64(xoauth2Payload) + "\r\n", loginOK},
		"a list and no AS": {"> * OK hi", "< CAPABILITY", "> * CAPABILITY IMAP4rev1 AUTH=oauthbearer SASL-IR\r\n{C} OK", "< AUTHENTICATE OAUTHBEARER " + encodeBase64(bearerPayload), loginOK},
	} {
		for _, login := range []string{Passthrough, OAuthLogin} {
			a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS, Login: login}}, tokenRequest(t), steps...)
			a.finish()
			if a.err != nil || a.Err != nil || a.result != event.ConnectOK {
				t.Errorf("%s, %s: %v, %v, %s", what, login, a.err, a.Err, a.result)
			}
		}
	}
}

func TestARejectedTokenIsDenied(t *testing.T) {
	why := "> + " + encodeBase64(`{"status":"invalid_token","scope":"mail"}`)
	for what, c := range map[string]struct {
		greeting string
		steps    []string
	}{
		"with reasons":       {greetingOAuth, []string{why, "< AQ==\r\n", "> {L} NO [AUTHENTICATIONFAILED] no"}},
		"old, with reasons":  {"> * OK [CAPABILITY IMAP4rev1 ID SASL-IR AUTH=XOAUTH2] hi", []string{why, "< \r\n", "> {L} NO no"}},
		"without":            {greetingOAuth, []string{"> {L} NO [AUTHENTICATIONFAILED] no"}},
		"with empty reasons": {greetingOAuth, []string{"> + ", "< AQ==\r\n", "> * OK x\r\n{L} NO no"}},
	} {
		steps := append([]string{c.greeting, "< ID", "< AUTHENTICATE", "> {I} OK"}, c.steps...)
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, tokenRequest(t), steps...)
		a.finish()
		if !errors.Is(a.err, ErrDenied) || a.Err != nil || a.result != event.ConnectDenied {
			t.Errorf("%s: %v, %v, %s", what, a.err, a.Err, a.result)
		}
	}
}

// A token that could not be verified is not denied. The backend may report that in the code or,
// as Dovecot 2.4, only in the challenge.
func TestAnUnverifiableTokenIsNotDenied(t *testing.T) {
	for what, c := range map[string]struct {
		challenge, end string
		unavailable    bool
	}{
		"the code":             {`{"status":"invalid_token"}`, "NO [UNAVAILABLE] later", true},
		"Dovecot 2.4":          {`{"status":"internal_failure","scope":"mail","openid-configuration":""}`, "NO [AUTHENTICATIONFAILED] no", true},
		"OAuth's words":        {`{"status":"temporarily_unavailable"}`, "NO no", true},
		"others of OAuth":      {`{"status":"server_error"}`, "NO no", true},
		"HTTP's number":        {`{"status":"503","schemes":"bearer"}`, "NO no", true},
		"a bad token's":        {`{"status":"401","schemes":"bearer"}`, "NO [AUTHENTICATIONFAILED] no", false},
		"a long number":        {`{"status":"5000"}`, "NO no", false},
		"the word in the text": {`{"status":"invalid_token","scope":"internal_failure"}`, "NO no", false},
		"no object":            {`["internal_failure"]`, "NO no", false},
		"half an object":       {`{"status":"internal_failure"`, "NO no", false},
	} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, tokenRequest(t), greetingOAuth, "< ID", "< AUTHENTICATE", "> {I} OK",
			"> + "+encodeBase64(c.challenge), "< AQ==", "> {L} "+c.end)
		a.finish()
		var refused *RefusedError
		if errors.As(a.err, &refused) != c.unavailable || errors.Is(a.err, ErrDenied) == c.unavailable || (VerdictOf(a.err) == VerdictWrong) == c.unavailable {
			t.Errorf("%s: %v", what, a.err)
		} else if c.unavailable && (refused.Code != "UNAVAILABLE" || a.result != event.ConnectRefused) {
			t.Errorf("%s: %v, %s", what, a.err, a.result)
		}
	}
}

func TestTheChallengeOfARefusalCannotBeMisused(t *testing.T) {
	front := []string{greetingOAuth, "< ID", "< AUTHENTICATE", "> {I} OK"}
	for what, c := range map[string]struct {
		steps  []string
		result event.ConnectResult
	}{
		"two challenges":          {[]string{"> + ", "< AQ==", "> + again"}, event.ConnectProtocol},
		"an OK after it":          {[]string{"> + ", "< AQ==", loginOK}, event.ConnectProtocol},
		"BYE after it":            {[]string{"> + ", "< AQ==", "> * BYE"}, event.ConnectClosed},
		"PREAUTH after it":        {[]string{"> + ", "< AQ==", "> * PREAUTH"}, event.ConnectProtocol},
		"an end":                  {[]string{"> + ", "< AQ==", "fin"}, event.ConnectClosed},
		"BAD after it":            {[]string{"> + ", "< AQ==", "> {L} BAD no"}, event.ConnectNotAccepted},
		"another tag":             {[]string{"> + ", "< AQ==", "> a1 NO"}, event.ConnectProtocol},
		"BAD":                     {[]string{"> {L} BAD what", "fin"}, event.ConnectNotAccepted},
		"its words in an error":   {[]string{"> {L} BAD AUTHENTICATE " + canary, "fin"}, event.ConnectNotAccepted},
		"them coded":              {[]string{"> {L} BAD " + encodeBase64(bearerPayload), "fin"}, event.ConnectNotAccepted},
		"a challenge without end": {[]string{">> + " + strings.Repeat("e", 1<<17)}, event.ConnectProtocol},
	} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, tokenRequest(t), append(front, c.steps...)...)
		a.finish()
		if !errors.Is(a.err, ErrUnavailable) || errors.Is(a.err, ErrDenied) || a.result != c.result || leaksCredentials(a.err.Error()) && what != "BAD" {
			t.Errorf("%s: %v, %s", what, a.err, a.result)
		}
	}
	// PLAIN has no such challenge, whatever other mechanisms the backend offers.
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), append(front, "> + ")...)
	if a.finish(); !errors.Is(a.err, errContinuation) {
		t.Errorf("a password: %v", a.err)
	}
}

func TestStartTLSAttacksGetNoToken(t *testing.T) {
	cases := append(append(bufferingAttacks(), negotiationAttacks()...), append(tamperingAttacks(), spoofingAttacks()...)...)
	for _, h := range cases {
		for i, step := range h.steps {
			h.steps[i] = strings.ReplaceAll(step, "AUTH=PLAIN", "AUTH=OAUTHBEARER AUTH=XOAUTH2")
		}
		h.runWith(t, Config{}, tokenRequest(t))
	}
}

func TestATokenIsNotSentWithoutAMechanism(t *testing.T) {
	for _, caps := range []string{"IMAP4rev1", "IMAP4rev1 AUTH=PLAIN SASL-IR", "IMAP4rev1 AUTH=OAUTHBEARERS"} {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, tokenRequest(t), "> * OK [CAPABILITY "+caps+"] hi")
		a.finish()
		if !errors.Is(a.err, errMechanism) || !errors.Is(a.err, ErrUnavailable) || leaksCredentials(a.Plaintext.String()) {
			t.Errorf("%s: %v, %q", caps, a.err, a.Plaintext.String())
		}
	}
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS, Login: MasterLogin, Master: testMaster("authzid")}}, tokenRequest(t), greetingOAuth, "< ID",
		"< AUTHENTICATE PLAIN "+encodeBase64("joe@example.org\x00boss\x00m-pw"), "> {I} OK", loginOK)
	if a.finish(); a.err != nil || a.Err != nil {
		t.Errorf("a master's login: %v, %v", a.err, a.Err)
	}
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS, Login: OAuthLogin}}), Hooks{}, zap.NewNop())
	if _, err := b.Login(t.Context(), testRequest(t)); !errors.Is(err, errNoToken) || !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
		t.Errorf("a password where only tokens are accepted: %v", err)
	}
	for _, bad := range []string{"a b", "a\x01b", "a\r\nb", "a\x00", strings.Repeat("t", identity.MaxToken+1)} {
		req := tokenRequest(t)
		req.Token = identity.NewSecret(bad)
		if _, err := b.Login(t.Context(), req); !errors.Is(err, ErrDenied) {
			t.Errorf("%.10q: %v", bad, err)
		}
	}
}

// A token that does not fit a command's line is sent after a continuation request. A backend
// that does not read it to its end shows nothing about the token or its own health.
func TestALongTokenIsSentAfterAContinuation(t *testing.T) {
	req := tokenRequest(t)
	req.Token = identity.NewSecret(canary + strings.Repeat("t", identity.MaxToken-len(canary)))
	message := encodeBase64("n,a=joe@example.org,\x01auth=Bearer " + req.Token.Reveal() + "\x01\x01")
	a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, req, greetingOAuth, "< ID", "< AUTHENTICATE OAUTHBEARER\r\n", "> {I} OK\r\n+ ", "< "+message+"\r\n", loginOK)
	if a.finish(); a.err != nil || a.Err != nil {
		t.Fatalf("%v, %.200v", a.err, a.Err)
	}
	for what, end := range map[string][]string{
		"closed": {"fin"}, "reset": {"rst"}, "BYE": {"> * BYE Authentication response too large", "fin"},
	} {
		steps := append([]string{greetingOAuth, "< ID", "< AUTHENTICATE OAUTHBEARER\r\n", "> {I} OK\r\n+ ", "< "}, end...)
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, req, steps...)
		a.finish()
		if !errors.Is(a.err, ErrUnavailable) || a.result != event.ConnectNotAccepted || VerdictOf(a.err) != VerdictNone {
			t.Errorf("%s: %v, %s, verdict %d", what, a.err, a.result, VerdictOf(a.err))
		}
	}
}

func TestFailuresCausedByClientsDoNotAffectHealth(t *testing.T) {
	for what, c := range map[string]struct {
		req   Request
		steps []string
	}{
		"a token where none is taken": {tokenRequest(t), []string{"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi"}},
		"a BAD to a token":            {tokenRequest(t), []string{"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi", "< AUTHENTICATE", "> {L} BAD what", "fin"}},
		"a BAD to a password":         {testRequest(t), []string{"> * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi", "< AUTHENTICATE", "> {L} BAD what", "fin"}},
	} {
		for _, since := range []time.Time{{}, time.Now().Add(-time.Second)} {
			result := event.ConnectResult("")
			b := New(testbed.WithDefaults(Config{Settings: Settings{Address: (&testkit.Steps{Lines: c.steps}).Start(t), TLS: event.NoTLS}}), Hooks{OnConnect: func(r event.ConnectResult) { result = r }}, zap.NewNop())
			b.list()[0].health.failingSince = since
			if _, err := b.Login(t.Context(), c.req); !errors.Is(err, ErrUnavailable) || result != event.ConnectNotAccepted || !b.list()[0].health.failingSince.Equal(since) {
				t.Errorf("%s: %v, %s; it has failed since %v, and had since %v", what, err, result, b.list()[0].health.failingSince, since)
			}
		}
	}
}

func TestAcceptsCredentialsDependsOnTheLogin(t *testing.T) {
	none, some := identity.Secret{}, identity.NewSecret("x")
	for login, want := range map[string][4]bool{ // nothing, a password, a token, both
		Passthrough: {false, true, true, true}, OAuthLogin: {false, false, true, true}, MasterLogin: {true, true, true, true},
	} {
		b := New(testbed.WithDefaults(Config{Settings: Settings{Login: login}}), Hooks{}, zap.NewNop())
		if got := [4]bool{b.AcceptsCredentials(none, none), b.AcceptsCredentials(some, none), b.AcceptsCredentials(none, some), b.AcceptsCredentials(some, some)}; got != want {
			t.Errorf("%s: %v", login, got)
		}
	}
}

func TestANameIsEscapedForOAuthBearer(t *testing.T) {
	b := New(testbed.WithDefaults(Config{Settings: Settings{Address: "127.0.0.1:1", TLS: event.NoTLS}}), Hooks{}, zap.NewNop())
	req := tokenRequest(t)
	req.Login = "joe,a=x=2C"
	creds, err := b.cfg().buildCredentials(req)
	if err != nil {
		t.Fatal(err)
	}
	var cmd loginCommand
	lc := &loginConn{loginTag: "L1", caps: imap.ParseCaps("IMAP4rev1 SASL-IR AUTH=OAUTHBEARER")}
	if err := creds.appendLogin(&cmd, formInitialResponse, lc); err != nil {
		t.Fatal(err)
	}
	want := "L1 AUTHENTICATE OAUTHBEARER " + encodeBase64("n,a=joe=2Ca=3Dx=3D2C,\x01auth=Bearer "+canary+"\x01\x01") + "\r\n"
	if string(cmd.bytes) != want {
		t.Errorf("%q, want %q", cmd.bytes, want)
	}
}
