package proxy

import (
	"fmt"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"imapgate/internal/event"
	"imapgate/proxy/upstream"
)

// expectSameAnswer expects the same answer for a, the only user seen, and an unknown user
// with the same credentials.
func expectSameAnswer(t *testing.T, what, want string, ask func(user string) string) {
	t.Helper()
	for _, user := range []string{"a", "unknown"} {
		if got := ask(user); got != want {
			t.Errorf("%s: %s received %s, want %s", what, user, got, want)
		}
	}
}

// If a wrong password of a user gets UNAVAILABLE, whatever the backend answered, so does an
// unknown name.
func TestUnavailableAnswerCountsAsOutage(t *testing.T) {
	var answer atomic.Value
	answer.Store("")
	v := openAnsweringBackend(t, func(string, string) string { return answer.Load().(string) })
	b := newHarness(t, v.Addr(), withCountedUsers)
	for i, answerText := range []string{
		"NO generic failure", "NO Login failed: generic failure", "NO remote authentication server unavailable", "NO transient failure", // Cyrus
		"NO [UNAVAILABLE] no", "NO [SERVERBUG] no", "NO [THROTTLED] no", "NO [PRIVACYREQUIRED] no", "NO [CANNOT] no",
		"NO [X-UNHEARD-OF] no", "BAD no", "BAD Authentication failed.", "",
	} {
		guess := func(user string) string { return b.tryLogin(fmt.Sprintf("203.%d.113.7", i), user, "wrong") }
		answer.Store(answerText)
		expectSameAnswer(t, answerText, unavailableReply, guess)
		answer.Store("NO [AUTHENTICATIONFAILED] no")
		expectSameAnswer(t, "after "+answerText, authFailedReply, guess)
	}
	// These concern one user, and show that the backend verifies passwords.
	for i, answerText := range []string{"NO [CORRUPTION] no", "NO [REFERRAL imap://other/] there", "NO [LIMIT] no"} {
		answer.Store("NO [UNAVAILABLE] no")
		b.tryLogin(fmt.Sprintf("198.%d.113.7", i), "a", "wrong")
		answer.Store(answerText)
		b.tryLogin(fmt.Sprintf("198.%d.113.7", i), "a", password)
		if got := b.tryLogin(fmt.Sprintf("198.%d.113.7", i), "unknown", "wrong"); got != authFailedReply {
			t.Errorf("%s: unknown user received %s", answerText, got)
		}
	}
}

// withTokens makes clients use tokens that the backends verify.
func withTokens(s *harnessConfig) {
	s.auth.Mechanisms = []string{"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}
}

// An outage for tokens does not affect passwords.
func TestTokenOutageDoesNotAffectPasswords(t *testing.T) {
	for name, backend := range map[string]string{
		"its provider is down": openAnsweringBackend(t, func(_, secret string) string {
			if secret == "token" {
				return "NO [UNAVAILABLE] the provider does not answer"
			}
			return "NO [AUTHENTICATIONFAILED] no"
		}).Addr(),
		"it takes no tokens": openTestBackend(t).addr(),
	} {
		t.Run(name, func(t *testing.T) {
			b := openHarness(t, backend, withCountedUsers, withTokens)
			for i := range 3 {
				address := fmt.Sprintf("203.%d.113.7", i)
				expectSameAnswer(t, "a token", unavailableReply, func(user string) string { return b.tryToken(address, "XOAUTH2", user, "token") })
				expectSameAnswer(t, "a password", authFailedReply, func(user string) string { return b.tryLogin(address, user, "wrong") })
			}
			if got := b.tryToken("203.0.114.7", "XOAUTH2", "unknown", "token"); got != unavailableReply {
				t.Errorf("unknown user with a token, after passwords: %s", got)
			}
		})
	}
}

// A backend that does not read all of a long token, such as Dovecot, reveals nothing.
func TestRefusedLongTokenRevealsNothing(t *testing.T) {
	v := openAnsweringBackend(t, func(_, secret string) string {
		if len(secret) > upstream.LongTokenSize {
			return ""
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newHarness(t, v.Addr(), withCountedUsers, withTokens)
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		long := padToken(upstream.LongTokenSize+1, "wrong")
		expectSameAnswer(t, "a long token", unavailableReply, func(user string) string { return b.tryToken(address, "XOAUTH2", user, long) })
		expectSameAnswer(t, "a token", authFailedReply, func(user string) string { return b.tryToken(address, "XOAUTH2", user, "token") })
		expectSameAnswer(t, "a password", authFailedReply, func(user string) string { return b.tryLogin(address, user, "wrong") })
	}
}

// A backend reads tokens up to its own maximum length. A token that it has read reveals
// nothing about a longer one.
func TestAcceptedLongTokenRevealsNothingOfLonger(t *testing.T) {
	const read = upstream.LongTokenSize + 1000
	v := openAnsweringBackend(t, func(_, secret string) string {
		if len(secret) > read {
			return ""
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newHarness(t, v.Addr(), withCountedUsers, withTokens)
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		for _, n := range []int{read + 1, upstream.LongTokenSize + 1, read + 1, read + 500} {
			want := unavailableReply
			if n <= read {
				want = authFailedReply
			}
			long := padToken(n, "wrong")
			expectSameAnswer(t, fmt.Sprint("a token of ", n), want, func(user string) string { return b.tryToken(address, "XOAUTH2", user, long) })
		}
	}
}

// A backend may reject a password that is not UTF-8, and reveals nothing by it.
func TestNonUTF8PasswordRevealsNothing(t *testing.T) {
	v := openAnsweringBackend(t, func(_, secret string) string {
		if !utf8.ValidString(secret) {
			return "BAD not UTF-8"
		}
		if secret == "right" { // shows that the form of the login is accepted
			return loginOK
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newHarness(t, v.Addr(), withCountedUsers)
	b.tryLogin("203.0.113.8", "frank", "right")
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		expectSameAnswer(t, "a password in Latin-1", unavailableReply, func(user string) string { return b.tryLogin(address, user, "\"w\xe4\"") })
		expectSameAnswer(t, "a password", authFailedReply, func(user string) string { return b.tryLogin(address, user, "wrong") })
	}
}

// Where only tokens are accepted, a password is refused for known and unknown users.
func TestPasswordAtTokenBackendRevealsNothing(t *testing.T) {
	v := openAnsweringBackend(t, func(string, string) string { return "NO [AUTHENTICATIONFAILED] no" })
	b := newHarness(t, v.Addr(), withCountedUsers, withTokens, func(s *harnessConfig) {
		s.backends["east"] = upstream.Config{Settings: upstream.Settings{Address: v.Addr(), TLS: event.NoTLS, Login: upstream.OAuthLogin}}
	})
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		expectSameAnswer(t, "a password", unavailableReply, func(user string) string { return b.tryLogin(address, user, "wrong") })
		expectSameAnswer(t, "a token", authFailedReply, func(user string) string { return b.tryToken(address, "XOAUTH2", user, "token") })
	}
}
