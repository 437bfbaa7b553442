package proxy

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/limit"
	"imapgate/internal/testkit"
	"imapgate/proxy/login"
	"imapgate/proxy/upstream"
)

// openAnsweringBackend starts a backend that accepts every form of login. answer returns
// the answer after the tag; "" closes the connection, and "nothing" never answers.
func openAnsweringBackend(t testing.TB, answer func(user, secret string) string) *testkit.ScriptedIMAP {
	t.Helper()
	return testkit.StartIMAP(t, func(u *testkit.Conn) { serveAnswers(u, answer) })
}

// serveAnswers returns when the connection ends.
func serveAnswers(u *testkit.Conn, chooseAnswer func(user, secret string) string) {
	_ = u.Send("* OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=PLAIN AUTH=OAUTHBEARER AUTH=XOAUTH2] Hello.")
	for {
		line, err := u.ReadLine()
		if err != nil {
			return
		}
		words := strings.Split(line, " ")
		answer := "OK Done."
		if len(words) == 3 && words[1] == "AUTHENTICATE" {
			_ = u.Send("+ ")
			response, _ := u.ReadLine()
			words = append(words, response)
		}
		if len(words) == 4 && words[1] == "AUTHENTICATE" {
			message, _ := base64.StdEncoding.DecodeString(words[3])
			parts := strings.FieldsFunc(string(message), func(r rune) bool { return r == 0 || r == 1 })
			secret := strings.TrimPrefix(parts[len(parts)-1], "auth=Bearer ")
			switch answer = chooseAnswer(parts[0], secret); answer {
			case "":
				return
			case "nothing":
				_, _ = io.Copy(io.Discard, u.R)
				return
			}
		}
		before, tagged := "", answer
		if i := strings.LastIndex(answer, "\r\n"); i >= 0 { // untagged responses come first
			before, tagged = answer[:i+2], answer[i+2:]
		}
		if u.Send(before+words[0]+" "+tagged) != nil {
			return
		}
	}
}

// loginOK is the answer to a right password.
const loginOK = "OK [CAPABILITY IMAP4rev1] In."

// withCountedUsers uses the default limits with users a to z on the backend, and short
// denials.
func withCountedUsers(s *harnessConfig) {
	s.limits = limit.Config{Settings: limit.Settings{Failures: failureLimits()}}
	s.changeServer = func(srv *Server) { srv.logins.MinDenialTime, srv.logins.DenialJitter = 0, 1 }
	s.cfg.MaxAuthAttempts = 100
	for user := 'a'; user <= 'z'; user++ {
		s.routes.Static.Users[string(user)] = "east"
	}
}

// countTries tries n different passwords for a user from an address. It returns the number
// of answers until the ban, or n without one.
func (b *harness) countTries(address, user string, n int) int {
	for i := range n {
		if got := b.tryLogin(address, user, fmt.Sprint("guess", i)); strings.HasPrefix(got, "* BYE [UNAVAILABLE] Too many connections.") {
			return i
		}
	}
	return n
}

// answerCounts are a backend's answers and what they count as.
var answerCounts = []struct {
	answer string
	banned int // number of 12 guesses until the ban
	reply  string
}{
	{"NO [AUTHENTICATIONFAILED] no", 10, authFailedReply},
	{"NO no", 10, authFailedReply},
	{"NO [ALERT] Invalid credentials (Failure)", 10, authFailedReply},
	{"NO [LIMIT] Maximum number of connections from user+IP exceeded", 12, "NO [LIMIT] Maximum number of connections from user+IP exceeded"},
	{"NO [INUSE] locked", 12, "NO [INUSE] locked"},
	{"NO [OVERQUOTA] Too much mail.", 12, "NO [OVERQUOTA] Too much mail."},
	{"NO [EXPIRED] old", 12, "NO [EXPIRED] old"},
	{"NO [NOPERM] not here", 12, "NO [NOPERM] not here"},
	{"NO [CONTACTADMIN] Login disabled", 12, "NO [CONTACTADMIN] Login disabled"},
	{"NO [AUTHORIZATIONFAILED] not so", 12, "NO [AUTHORIZATIONFAILED] not so"},
	{"NO [ALERT] Please log in via your web browser", 12, "NO [ALERT] Please log in via your web browser"},
	{"NO [UNAVAILABLE] the database is down", 12, unavailableReply},
	{"NO [SERVERBUG] oops", 12, unavailableReply},
	{"NO [PRIVACYREQUIRED] TLS", 12, unavailableReply},
	{"NO [REFERRAL imap://evil/] there", 12, unavailableReply},
	{"NO [ALERT] Be careful.", 11, "NO [ALERT] Be careful."},
	{"NO [X-UNHEARD-OF] what", 11, unavailableReply},
	{"BAD what", 11, unavailableReply},
	{"", 11, unavailableReply}, // the backend closes
}

func TestRefusalCountsByResponseCode(t *testing.T) {
	v := openAnsweringBackend(t, func(user, _ string) string { return answerCounts[user[0]-'a'].answer })
	b := newHarness(t, v.Addr(), withCountedUsers)
	runParallel(len(answerCounts), 4, func(i int) {
		c, user, address := answerCounts[i], string(rune('a'+i)), fmt.Sprintf("203.%d.113.7", i)
		if got := b.tryLogin(address, user, "guess0"); got != c.reply {
			t.Errorf("%s: the client received %s", c.answer, got)
		}
		if n := b.countTries(address, user, 12); n != c.banned {
			t.Errorf("%s: the address is banned after %d guesses, not %d", c.answer, n, c.banned)
		}
		if got := b.tryLogin(fmt.Sprintf("203.%d.114.7", i), user, "guess0"); got != c.reply {
			t.Errorf("%s: from elsewhere the client received %s", c.answer, got)
		}
	})
}

// Unclear answers to the one password that a user's devices share are no guesses, however
// many devices there are.
func TestUnclearAnswerToOnePasswordIsNoGuess(t *testing.T) {
	v := openAnsweringBackend(t, func(user, _ string) string { return "NO [ALERT] Be careful, " + user })
	b := newHarness(t, v.Addr(), withCountedUsers)
	for range 3 {
		for user := 'a'; user <= 'l'; user++ {
			if got := b.tryLogin("203.0.113.7", string(user), "own-"+string(user)); !strings.HasPrefix(got, "NO [ALERT]") {
				t.Fatalf("%c: %s", user, got)
			}
		}
	}
}

// A backend's answer does not count as a guess if the gateway has verified the password.
func TestRefusalIsNoGuessAfterGatewayVerification(t *testing.T) {
	for _, answer := range []string{"NO [LIMIT] no", "NO [AUTHENTICATIONFAILED] no", "NO no", "NO [ALERT] Be careful.", "BAD what", ""} {
		v := openAnsweringBackend(t, func(string, string) string { return answer })
		for user, backend := range map[string]string{"frank": "a passthrough backend", "carol": "a master login"} {
			t.Run(answer+" of "+backend, func(t *testing.T) {
				b := newHarness(t, v.Addr(), withCountedUsers)
				for range 12 {
					if got := b.tryLogin("203.0.113.7", user, password); got != unavailableReply && !strings.Contains(answer, strings.TrimPrefix(got, "NO ")) {
						t.Fatal(got)
					}
				}
				if n := b.countTries("203.0.113.7", user, 12); n != 10 {
					t.Errorf("wrong ones: banned after %d", n)
				}
			})
		}
	}
}

// A blocked user with the right password, and one without a route, get the answer to a
// wrong password. An office of them is not banned.
func TestDeniedRightPasswordIsNoGuess(t *testing.T) {
	v := openAnsweringBackend(t, func(string, string) string { return loginOK })
	b := newHarness(t, v.Addr(), withCountedUsers, func(s *harnessConfig) {
		for i := range 12 {
			s.users += fmt.Sprintf("homeless%d@example.org:{PLAIN}%s\n", i, password)
		}
	})
	for i := range 12 {
		if got := b.tryLogin("203.0.113.7", fmt.Sprint("homeless", i), password); got != authFailedReply {
			t.Fatal(got)
		}
	}
	if n := b.countTries("203.0.113.7", "homeless0", 12); n != 10 {
		t.Errorf("wrong ones: banned after %d", n)
	}
}

// tryToken tries a token and returns the answer.
func (b *harness) tryToken(address, mechanism, user, token string) string {
	nc, err := net.Dial("tcp", b.addr("balanced-none"))
	if err != nil {
		return err.Error()
	}
	defer nc.Close()
	_ = nc.SetDeadline(time.Now().Add(30 * time.Second)) // of a new connection
	r := bufio.NewReader(nc)
	_, _ = fmt.Fprintf(nc, "PROXY TCP4 %s 127.0.0.1 4711 143\r\n", address)
	if line, err := r.ReadString('\n'); err != nil || !strings.HasPrefix(line, "* OK") {
		return strings.TrimSpace(line)
	}
	form := map[string]string{"XOAUTH2": "user=%s\x01auth=Bearer %s\x01\x01", "OAUTHBEARER": "n,a=%s,\x01auth=Bearer %s\x01\x01"}[mechanism]
	_, _ = fmt.Fprintf(nc, "a AUTHENTICATE %s %s\r\n", mechanism, encodeBase64(fmt.Sprintf(form, user, token)))
	line, _ := r.ReadString('\n')
	if strings.HasPrefix(line, "+ ") { // error challenge for the token
		_, _ = io.WriteString(nc, "AQ==\r\n")
		line, _ = r.ReadString('\n')
	}
	return strings.TrimSpace(strings.TrimPrefix(line, "a "))
}

// Tokens are renewed, so a misconfigured client sends one after the other.
func TestOnlyDeniedTokenIsGuess(t *testing.T) {
	for i, mechanism := range []string{"XOAUTH2", "OAUTHBEARER"} {
		v := openAnsweringBackend(t, func(user, _ string) string {
			for name, answer := range map[string]string{"wrong": "NO [AUTHENTICATIONFAILED] no", "limit": "NO [LIMIT] no", "alert": "NO [ALERT] Be careful.", "bad": "BAD what"} {
				if strings.Contains(user, name) {
					return answer
				}
			}
			return ""
		})
		b := newHarness(t, v.Addr(), withCountedUsers, func(s *harnessConfig) {
			s.auth.Mechanisms = []string{"XOAUTH2", "OAUTHBEARER"}
			for _, user := range []string{"wrong", "limit", "alert", "bad", "silent"} {
				s.routes.Static.Users[user] = "east"
			}
		})
		for j, user := range []string{"wrong", "limit", "alert", "bad", "silent"} {
			banned, address := 12, fmt.Sprintf("203.%d.%d.7", i, 10*j)
			for n := range 12 {
				if got := b.tryToken(address, mechanism, user, fmt.Sprint("token", n)); strings.HasPrefix(got, "* BYE") {
					banned = n
					break
				}
			}
			if guess := user == "wrong"; guess && banned != 10 || !guess && banned != 12 {
				t.Errorf("%s of %s: banned after %d", mechanism, user, banned)
			}
		}
	}
}

// withExpiredDeadline lets the connection's deadline pass after a login was read and before
// it is verified, however slow the machine is. The delay for failures ends with that
// deadline, so it is almost zero.
func withExpiredDeadline(s *harnessConfig) {
	s.limits.Failures.Delay = time.Nanosecond
	before := s.changeServer
	s.changeServer = func(srv *Server) {
		if before != nil {
			before(srv)
		}
		srv.logins.BeforeVerify = func(s *login.Client) {
			s.Deadline = time.Now()
		}
	}
}

// The backend answers a wrong password after the client's deadline has passed, as Dovecot's
// penalty does for guesses sent just before it.
func TestGuessBeforeDeadlineCounts(t *testing.T) {
	for _, mode := range []event.Mode{event.ModeSplice, event.ModeReuse} {
		v := openAnsweringBackend(t, func(_, secret string) string {
			if secret == password {
				return loginOK
			}
			return "NO [AUTHENTICATIONFAILED] at last"
		})
		b := newHarness(t, v.Addr(), withCountedUsers, withExpiredDeadline, func(s *harnessConfig) {
			s.cfg.Modes = map[string]BackendSettings{"east": {Mode: mode}}
		})
		runParallel(10, 10, func(i int) {
			if got := b.tryLogin("203.0.113.7", "a", fmt.Sprint("guess", i)); got != authFailedReply {
				t.Errorf("%s: guess %d: %q", mode, i, got)
			}
		})
		b.expectRefusedFrom("203.0.113.7")
	}
}

func TestRightPasswordAfterDeadlineLogsIn(t *testing.T) {
	v := openAnsweringBackend(t, func(string, string) string { return loginOK })
	b := newHarness(t, v.Addr(), withCountedUsers, withExpiredDeadline)
	for _, listener := range []string{"none", "implicit"} {
		c := b.dialGreeted(listener)
		c.write("a LOGIN a right\r\n")
		c.expectLine("a OK …")
		c.write("b NOOP\r\n")
		c.expectLine("b OK Done.")
		c.close()
	}
}

// The backend answers after all clients have closed.
func TestClientClosingBeforeVerdictIsCounted(t *testing.T) {
	gone := make(chan struct{})
	received := make(chan struct{}, 10)
	v := openAnsweringBackend(t, func(string, string) string {
		received <- struct{}{}
		<-gone
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newHarness(t, v.Addr(), withCountedUsers)
	for i := range 10 {
		c := b.dialGreetedFrom("203.0.113.7")
		c.write(fmt.Sprintf("a LOGIN a guess%d\r\n", i))
		<-received
		if i%2 == 0 {
			c.reset()
		} else {
			c.close()
		}
	}
	close(gone)
	testkit.Eventually(t, "the guesses to be counted", func() bool {
		c := b.dialFrom("203.0.113.7")
		defer c.close()
		line, _ := c.r.ReadString('\n')
		return strings.HasPrefix(line, "* BYE")
	})
}

// A gateway whose login timeout is shorter than the backend's delay for wrong passwords
// still waits for the verdict.
func TestShortLoginTimeoutMakesNoGuessFree(t *testing.T) {
	const short = 2 * time.Second
	late := openAnsweringBackend(t, func(string, string) string {
		<-time.After(short) // the gateway's timeout began earlier
		return "NO [AUTHENTICATIONFAILED] at last"
	})
	b := newHarness(t, late.Addr(), withCountedUsers, func(s *harnessConfig) {
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: late.Addr(), TLS: event.NoTLS}, LoginSettings: upstream.LoginSettings{UpstreamLoginTimeout: short, AnswerTimeout: 20 * time.Second}}
	})
	runParallel(10, 10, func(i int) {
		if got := b.tryLogin("203.0.113.7", "a", fmt.Sprint("guess", i)); got != authFailedReply {
			t.Errorf("guess %d: %q", i, got)
		}
	})
	b.expectRefusedFrom("203.0.113.7")
}

// If no verdict comes at all, one password of a user may be right, and further ones are
// guesses.
func TestSecondPasswordWithoutVerdictIsGuess(t *testing.T) {
	v := openAnsweringBackend(t, func(string, string) string { return "" })
	b := newHarness(t, v.Addr(), withCountedUsers)
	for range 2 { // an office whose backend closes the connections
		for user := 'b'; user <= 'm'; user++ {
			if got := b.tryLogin("198.51.100.7", string(user), "own"); got != unavailableReply {
				t.Fatalf("%c: %s", user, got)
			}
		}
	}
	if n := b.countTries("203.0.113.7", "a", 13); n != 11 {
		t.Errorf("banned after %d guesses", n)
	}
}

// The same for an auth server, which may also answer late.
func TestLateOrMissingAuthAnswerIsCounted(t *testing.T) {
	for name, tc := range map[string]struct {
		err    error
		late   bool
		banned int
	}{
		"a late denial":   {auth.ErrDenied, true, 10},
		"no answer":       {fmt.Errorf("%w: %w", auth.ErrUnavailable, auth.ErrNoResponse), false, 11},
		"no request sent": {auth.ErrUnavailable, false, 12},
	} {
		t.Run(name, func(t *testing.T) {
			changes := []func(*harnessConfig){withCountedUsers, func(s *harnessConfig) {
				s.auth.Methods = []string{auth.HTTP}
				s.authSources.HTTP = func(ctx context.Context, _ auth.Login) (auth.ServerResponse, error) {
					if err := ctx.Err(); err != nil { // the request has no timeout of its own
						return auth.ServerResponse{}, fmt.Errorf("%w: %w", auth.ErrUnavailable, err)
					}
					return auth.ServerResponse{}, tc.err
				}
			}}
			if !tc.late {
				b := newHarness(t, openTestBackend(t).addr(), changes...)
				if n := b.countTries("203.0.113.7", "a", 12); n != tc.banned {
					t.Errorf("banned after %d guesses", n)
				}
				return
			}
			b := newHarness(t, openTestBackend(t).addr(), append(changes, withExpiredDeadline)...)
			runParallel(10, 10, func(i int) {
				c := b.dialGreetedFrom("203.0.113.7")
				c.write(fmt.Sprintf("a LOGIN a guess%d\r\n", i))
				c.expectLine("a " + authFailedReply)
				c.expectLine("* BYE Login took too long.")
				c.close()
			})
			b.expectRefusedFrom("203.0.113.7")
		})
	}
}
