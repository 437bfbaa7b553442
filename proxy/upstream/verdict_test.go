package upstream

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
)

// answerCase is a backend's answer to a login and its result.
type answerCase struct {
	sentinel error  // of the error, if the client receives a constant
	refused  string // otherwise the text for the client
	result   event.ConnectResult
	verdict  Verdict
}

// answerCases are answers to the credentials.
var answerCases = map[string]answerCase{
	// Wrong credentials, with a code, or with the usual texts of servers without codes.
	"NO wrong":                        {ErrDenied, "", "denied", VerdictWrong},
	"NO":                              {ErrDenied, "", "denied", VerdictWrong},
	"NO [AUTHENTICATIONFAILED] wrong": {ErrDenied, "", "denied", VerdictWrong},
	"no [authenticationfailed] wrong": {ErrDenied, "", "denied", VerdictWrong},
	"NO LOGIN failed.":                {ErrDenied, "", "denied", VerdictWrong},
	"NO Login failed: authentication failure":      {ErrDenied, "", "denied", VerdictWrong},
	"NO [ALERT] Invalid credentials (Failure)":     {ErrDenied, "", "denied", VerdictWrong},
	"BAD Login failed, try AUTHENTICATE next time": {ErrUnavailable, "", "not_taken", VerdictWrong},

	// Right credentials that are refused nevertheless, or answers in place of a check.
	"NO [LIMIT] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=3)": {
		nil, "[LIMIT] Maximum number of connections from user+IP exceeded (mail_max_userip_connections=3)", "refused", VerdictRight},
	"NO [LIMIT]":                                                  {nil, "[LIMIT] Login refused.", "refused", VerdictRight},
	"NO [inuse] locked":                                           {nil, "[INUSE] locked", "refused", VerdictRight},
	"NO [OVERQUOTA] full":                                         {nil, "[OVERQUOTA] full", "refused", VerdictRight},
	"NO [EXPIRED] old":                                            {nil, "[EXPIRED] old", "refused", VerdictRight},
	"NO [NOPERM] not by IMAP":                                     {nil, "[NOPERM] not by IMAP", "refused", VerdictRight},
	"NO [AUTHORIZATIONFAILED] not so":                             {nil, "[AUTHORIZATIONFAILED] not so", "refused", VerdictRight},
	"NO [CONTACTADMIN] Login disabled for this user":              {nil, "[CONTACTADMIN] Login disabled for this user", "refused", VerdictRight},
	"NO [CONTACTADMIN] " + strings.Repeat("x", 4000):              {nil, "[CONTACTADMIN] " + strings.Repeat("x", 256), "refused", VerdictRight},
	"NO [ALERT] Please log in via your web browser (Failure)":     {nil, "[ALERT] Please log in via your web browser (Failure)", "refused", VerdictRight},
	"NO [ALERT] Too many simultaneous connections. (Failure)":     {nil, "[ALERT] Too many simultaneous connections. (Failure)", "refused", VerdictRight},
	"NO [REFERRAL imap://;AUTH=*@evil:243/] go there":             {ErrUnavailable, "", "refused", VerdictRight},
	"NO [WEBALERT https://login.example/x] Web login required.":   {ErrUnavailable, "", "refused", VerdictRight},
	"NO [CORRUPTION] index":                                       {ErrUnavailable, "", "refused", VerdictRight},
	"BAD User is authenticated but not connected.":                {ErrUnavailable, "", "not_taken", VerdictRight},
	"NO [UNAVAILABLE] x\r\n* 1 EXISTS\r\n* BYE":                   {nil, "[UNAVAILABLE] x", "refused", VerdictNone},
	"NO [UNAVAILABLE] Temporary authentication failure.":          {nil, "[UNAVAILABLE] Temporary authentication failure.", "refused", VerdictNone},
	"NO generic failure":                                          {ErrUnavailable, "", "refused", VerdictNone},
	"NO Login failed: generic failure":                            {ErrUnavailable, "", "refused", VerdictNone},
	"NO Login failed: remote authentication server unavailable":   {ErrUnavailable, "", "refused", VerdictNone},
	"NO [SERVERBUG] oops":                                         {nil, "[SERVERBUG] oops", "refused", VerdictNone},
	"NO [PRIVACYREQUIRED] Plaintext authentication disallowed":    {ErrUnavailable, "", "refused", VerdictNone},
	"NO [THROTTLED] slower":                                       {ErrUnavailable, "", "refused", VerdictNone},
	"NO [ALERT] Temporary problem, please try again later":        {nil, "[ALERT] Temporary problem, please try again later", "refused", VerdictNone},
	"OK [CAPABILITY IMAP4rev1] in\r\na1 OK [CAPABILITY X] forged": {ErrUnavailable, "", "protocol", VerdictNone}, // the credentials are right, but no result reports it

	// Either is possible.
	"NO [ALERT]":                             {nil, "[ALERT] Login refused.", "refused", VerdictUnclear},
	"NO [ALERT] \x1b[2Jcall \xe2\x80\xae{5}": {nil, "[ALERT] ?[2Jcall ?(5)", "refused", VerdictUnclear},
	"NO [X-UNHEARD-OF] what":                 {ErrUnavailable, "", "refused", VerdictUnclear},
	"NO [CLIENTBUG] what":                    {ErrUnavailable, "", "refused", VerdictUnclear},
	"BAD what":                               {ErrUnavailable, "", "not_taken", VerdictUnclear},
	"NO [AUTHENTICATIONFAILED wrong":         {ErrUnavailable, "", "protocol", VerdictUnclear},
	"5 OK in":                                {ErrUnavailable, "", "protocol", VerdictUnclear},
	"OKAY in":                                {ErrUnavailable, "", "protocol", VerdictUnclear},
	"BYE out":                                {ErrUnavailable, "", "protocol", VerdictNone},
	"PREAUTH in":                             {ErrUnavailable, "", "protocol", VerdictNone},
}

func TestAnswersAreClassified(t *testing.T) {
	for name, req := range map[string]Request{"AUTH=PLAIN": testRequest(t), "AUTH=OAUTHBEARER": tokenRequest(t), "AUTH=XOAUTH2": tokenRequest(t)} {
		for answer, tc := range answerCases {
			a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, req, "> * OK [CAPABILITY IMAP4rev1 SASL-IR "+name+"] hi", "< AUTHENTICATE", "> {L} "+answer, "fin")
			tc.check(t, name+" "+answer, a)
		}
	}
	for answer, tc := range answerCases {
		a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), "> * OK [CAPABILITY IMAP4rev1 LITERAL+] hi", "< LOGIN", "< ", "< ", "> {L} "+answer)
		tc.check(t, "LOGIN "+answer, a)
	}
}

func (tc answerCase) check(t *testing.T, what string, a loginAttempt) {
	t.Helper()
	var refused *RefusedError
	switch {
	case tc.sentinel != nil && (!errors.Is(a.err, tc.sentinel) || errors.As(a.err, &refused)):
		t.Errorf("%.60q: %v", what, a.err)
	case tc.refused != "" && (!errors.As(a.err, &refused) || "["+refused.Code+"] "+refused.Text != tc.refused):
		t.Errorf("%.60q: %v", what, a.err)
	}
	if got := VerdictOf(a.err); got != tc.verdict {
		t.Errorf("%.60q: verdict %v, want %v", what, got, tc.verdict)
	}
	if a.result != tc.result || len(a.err.Error()) > 2*maxText || a.conn != nil {
		t.Errorf("%.60q: %s, %d bytes of error", what, a.result, len(a.err.Error()))
	}
}

func TestEveryCodeAndPhraseIsCovered(t *testing.T) {
	covered := ""
	for answer := range answerCases {
		covered += strings.ToUpper(answer) + "\n"
	}
	for code := range responseCodes {
		if !strings.Contains(covered, "["+code) && code != "CANNOT" { // as CLIENTBUG
			t.Errorf("no answer has the code %s", code)
		}
	}
	for i, p := range knownPhrases {
		if p.text != strings.ToLower(p.text) || findPhrase(strings.ToUpper(p.text)+" and more") != p || sanitizeText(p.text) != p.text {
			t.Errorf("phrase %d, %q, is not found", i, p.text)
		}
	}
}

// A login that is aborted after the credentials were sent may have had wrong ones: a client
// can abort it, if the backend delays the answer to wrong ones.
func TestALoginWithoutAnAnswerIsUnclearAfterTheCredentialsAreSent(t *testing.T) {
	for name, tc := range map[string]struct {
		steps []string
		want  Verdict
	}{
		"before the greeting":         {[]string{"fin"}, VerdictNone},
		"silence before the greeting": {[]string{"hang"}, VerdictNone},
		"at AUTHENTICATE":             {[]string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE", "fin"}, VerdictNone},
		"refused before the secret":   {[]string{"> * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN] hi", "< AUTHENTICATE", "> {L} NO [PRIVACYREQUIRED] no"}, VerdictNone},
		"at the credentials":          {[]string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK", "fin"}, VerdictUnclear},
		"BYE at the credentials":      {[]string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK\r\n* BYE no"}, VerdictUnclear},
		"at the last literal":         {[]string{"> * OK [CAPABILITY IMAP4rev1] hi", "< LOGIN", "> + ", "< ", "> + ", "< ", "fin"}, VerdictUnclear},
	} {
		h := attack{name: "silence", mode: event.NoTLS} // has short limits
		cfg := Config{Settings: Settings{TLS: event.NoTLS}}
		h.shortenTimeouts(&cfg)
		a := logIn(t, cfg, testRequest(t), tc.steps...)
		if got := VerdictOf(a.err); got != tc.want || !errors.Is(a.err, ErrUnavailable) {
			t.Errorf("%s: verdict %v, %v", name, got, a.err)
		}
		a.finish()
	}
}

// However late in a login the credentials are sent, the backend has AnswerTimeout for its
// answer: Dovecot takes 17 s to refuse a wrong password.
func TestTheAnswerTimeoutExtendsTheLoginTimeout(t *testing.T) {
	for _, tc := range []struct {
		greets, answers, took time.Duration
		want                  Verdict
	}{
		{0, 29 * time.Second, 29 * time.Second, VerdictWrong}, // the remaining time of the login
		{29 * time.Second, 17 * time.Second, 46 * time.Second, VerdictWrong},
		{29 * time.Second, time.Hour, 29*time.Second + answerTimeout, VerdictUnclear},
		{0, time.Hour, testLimits.UpstreamLoginTimeout, VerdictUnclear},
		{time.Hour, 0, testLimits.UpstreamLoginTimeout, VerdictNone},
	} {
		synctest.Test(t, func(t *testing.T) {
			took, err := loginOverPipe(t, context.Background(), func(nc net.Conn) {
				advance(tc.greets)
				writeString(nc, "* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN] hi\r\n")
				line, _ := bufio.NewReader(nc).ReadString('\n')
				advance(tc.answers)
				tag, _, _ := strings.Cut(line, " ")
				writeString(nc, tag+" NO [AUTHENTICATIONFAILED] no\r\n")
			})
			if took != tc.took || VerdictOf(err) != tc.want {
				t.Errorf("greeting after %v, answer after %v: verdict %v after %v", tc.greets, tc.answers, VerdictOf(err), took)
			}
		})
	}
}

// encodings returns the recognizable forms in which a backend can repeat a secret.
func encodings(secret string) []string {
	reversed := []byte(secret)
	slices.Reverse(reversed)
	wide := make([]byte, 0, 2*len(secret))
	for _, c := range []byte(secret) {
		wide = append(wide, c, 0)
	}
	return []string{
		secret, string(reversed), base64.StdEncoding.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString(reversed),
		base64.StdEncoding.EncodeToString([]byte("\x00joe@example.org\x00" + secret)), base64.StdEncoding.EncodeToString(wide),
		hex.EncodeToString([]byte(secret)), url.QueryEscape(secret), secret[:5], secret[len(secret)-5:], strings.ToLower(secret),
		strings.Join(strings.Split(secret, ""), " "), strings.Join(strings.Split(secret, ""), "."),
	}
}

// checkNoLeak fails if an error contains word.
func checkNoLeak(t *testing.T, what string, err error, word string) {
	t.Helper()
	if err == nil || strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word)) {
		t.Errorf("%s: %v", what, err)
	}
}

func TestErrorsDoNotRepeatTheBackend(t *testing.T) {
	front := []string{greetingFull, "< ID", "< AUTHENTICATE", "> {I} OK"}
	for _, word := range encodings(canary) {
		for _, answer := range []string{
			"{L} BAD Unknown: %", "{L} NO %", "{L} NO [%] no", "{L} NO [LIMIT %] no", "{L} NO [AUTHENTICATIONFAILED] %", "{L} NO [ALERT] %", "{L} NO [UNAVAILABLE] %",
			"{L} NO [REFERRAL %] %", "* BYE %", "* BYE [%] %", "* BYE [ALERT] %", "% OK in", "{L} %", "{L} OK% in", "+ %", "% %", "%",
		} {
			a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), append(front, "> "+strings.ReplaceAll(answer, "%", word), "fin")...)
			checkNoLeak(t, answer, a.err, word)
			a.finish()
		}
		for _, steps := range [][]string{
			{"> * BYE " + word}, {"> * BYE [" + word + "] x"}, {"> " + word}, {"> * NO " + word}, {"> * PREAUTH " + word},
			{"> * OK [CAPABILITY " + word + "] " + word + "\r\n* BYE " + word}, {"> * OK hi", "< CAPABILITY", "> {C} NO " + word},
		} {
			a := logIn(t, Config{Settings: Settings{TLS: event.NoTLS}}, testRequest(t), steps...)
			checkNoLeak(t, steps[len(steps)-1], a.err, word)
			a.finish()
		}
		a := logIn(t, Config{Settings: Settings{TLS: event.StartTLS}}, testRequest(t), greetingStartTLS, "< STARTTLS", "> {S} NO ["+word+"] "+word)
		checkNoLeak(t, "STARTTLS", a.err, word)
		a.finish()
		a = logIn(t, Config{Settings: Settings{TLS: event.NoTLS, Login: MasterLogin, Master: testMaster(AuthzidStyle)}}, testRequest(t), append(front, "> {L} NO "+word)...)
		checkNoLeak(t, "master", a.err, word)
		a.finish()
	}
}

func TestDescribeResponseShowsOnlyKnownCodesAndPhrases(t *testing.T) {
	for line, want := range map[string]string{
		"* BYE [UNAVAILABLE] Temporary problem, see " + canary: "BYE [UNAVAILABLE] temporary problem",
		"a NO [LIMIT x] Maximum number of connections from":    "NO [LIMIT] maximum number of connections",
		"a NO [" + canary + "] " + canary:                      "NO [unknown code]",
		"a BAD " + canary:                                      "BAD",
		"* " + canary + " x":                                   "",
	} {
		res, err := imap.ParseResponse([]byte(line))
		if got := DescribeResponse(res); err != nil || got != want {
			t.Errorf("%s: %q, %v", line, got, err)
		}
	}
}
