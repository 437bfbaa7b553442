package proxy

import (
	"fmt"
	"sync/atomic"
	"testing"
	"unicode/utf8"

	"imapgate/proxy/upstream"
)

// alike asserts what a, the only user seen, and nobody hear to the same credentials.
func alike(t *testing.T, what, want string, ask func(user string) string) {
	t.Helper()
	for _, user := range []string{"a", "nobody"} {
		if got := ask(user); got != want {
			t.Errorf("%s: %s hears %s, not %s", what, user, got, want)
		}
	}
}

// Whatever a backend answers to a wrong password for which its user hears UNAVAILABLE,
// an unknown name hears it too.
func TestARefusalThatIsHeardAsUnavailableIsAnOutage(t *testing.T) {
	var answer atomic.Value
	answer.Store("")
	v := openVerdicts(t, func(string, string) string { return answer.Load().(string) })
	b := newBed(t, v.addr(), counting)
	for i, said := range []string{
		"NO generic failure", "NO Login failed: generic failure", "NO remote authentication server unavailable", "NO transient failure", // Cyrus
		"NO [UNAVAILABLE] no", "NO [SERVERBUG] no", "NO [THROTTLED] no", "NO [PRIVACYREQUIRED] no", "NO [CANNOT] no",
		"NO [X-UNHEARD-OF] no", "BAD no", "BAD Authentication failed.", "",
	} {
		guess := func(user string) string { return b.guess(fmt.Sprintf("203.%d.113.7", i), user, "wrong") }
		answer.Store(said)
		alike(t, said, unavailableReply, guess)
		answer.Store("NO [AUTHENTICATIONFAILED] no")
		alike(t, "after "+said, deniedReply, guess)
	}
	// These tell of one user, and that the backend checks passwords.
	for i, said := range []string{"NO [CORRUPTION] no", "NO [REFERRAL imap://other/] there", "NO [LIMIT] no"} {
		answer.Store("NO [UNAVAILABLE] no")
		b.guess(fmt.Sprintf("198.%d.113.7", i), "a", "wrong")
		answer.Store(said)
		b.guess(fmt.Sprintf("198.%d.113.7", i), "a", password)
		if got := b.guess(fmt.Sprintf("198.%d.113.7", i), "nobody", "wrong"); got != deniedReply {
			t.Errorf("%s: nobody hears %s", said, got)
		}
	}
}

// taking has clients bring tokens, and the backends judge them.
func taking(s *setup) {
	s.auth.Mechanisms = []string{"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"}
}

// What is away for tokens is not away for passwords.
func TestAnOutageOfTokensIsNoneOfPasswords(t *testing.T) {
	for name, backend := range map[string]string{
		"its provider is down": openVerdicts(t, func(_, secret string) string {
			if secret == "token" {
				return "NO [UNAVAILABLE] the provider does not answer"
			}
			return "NO [AUTHENTICATIONFAILED] no"
		}).addr(),
		"it takes no tokens": openMailbox(t).addr(),
	} {
		t.Run(name, func(t *testing.T) {
			b := openBed(t, backend, counting, taking)
			for i := range 3 {
				address := fmt.Sprintf("203.%d.113.7", i)
				alike(t, "a token", unavailableReply, func(user string) string { return b.token(address, "XOAUTH2", user, "token") })
				alike(t, "a password", deniedReply, func(user string) string { return b.guess(address, user, "wrong") })
			}
			if got := b.token("203.0.114.7", "XOAUTH2", "nobody", "token"); got != unavailableReply {
				t.Errorf("nobody with a token, after passwords: %s", got)
			}
		})
	}
}

// A backend that does not read a long token to its end, as Dovecot, tells nothing by it.
func TestALongTokenThatIsNotReadTellsNothing(t *testing.T) {
	v := openVerdicts(t, func(_, secret string) string {
		if len(secret) > upstream.LongToken {
			return ""
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newBed(t, v.addr(), counting, taking)
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		long := longToken(upstream.LongToken+1, "wrong")
		alike(t, "a long token", unavailableReply, func(user string) string { return b.token(address, "XOAUTH2", user, long) })
		alike(t, "a token", deniedReply, func(user string) string { return b.token(address, "XOAUTH2", user, "token") })
		alike(t, "a password", deniedReply, func(user string) string { return b.guess(address, user, "wrong") })
	}
}

// A backend reads tokens up to a length of its own: one that it has read says nothing of
// a longer one.
func TestALongTokenThatIsReadTellsNothingOfALongerOne(t *testing.T) {
	const read = upstream.LongToken + 1000
	v := openVerdicts(t, func(_, secret string) string {
		if len(secret) > read {
			return ""
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newBed(t, v.addr(), counting, taking)
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		for _, n := range []int{read + 1, upstream.LongToken + 1, read + 1, read + 500} {
			want := unavailableReply
			if n <= read {
				want = deniedReply
			}
			long := longToken(n, "wrong")
			alike(t, fmt.Sprint("a token of ", n), want, func(user string) string { return b.token(address, "XOAUTH2", user, long) })
		}
	}
}

// A backend may not take for a password what is not UTF-8, and then says nothing of it.
func TestAPasswordThatIsNoUTF8TellsNothing(t *testing.T) {
	v := openVerdicts(t, func(_, secret string) string {
		if !utf8.ValidString(secret) {
			return "BAD not UTF-8"
		}
		if secret == "right" { // which shows that the form of a login is taken
			return admits
		}
		return "NO [AUTHENTICATIONFAILED] no"
	})
	b := newBed(t, v.addr(), counting)
	b.guess("203.0.113.8", "frank", "right")
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		alike(t, "a password in Latin-1", unavailableReply, func(user string) string { return b.guess(address, user, "\"w\xe4\"") })
		alike(t, "a password", deniedReply, func(user string) string { return b.guess(address, user, "wrong") })
	}
}

// A password is refused wherever only tokens are taken, of users and of nobody.
func TestAPasswordWhereOnlyTokensAreTakenTellsNothing(t *testing.T) {
	v := openVerdicts(t, func(string, string) string { return "NO [AUTHENTICATIONFAILED] no" })
	b := newBed(t, v.addr(), counting, taking, func(s *setup) {
		s.backends["east"] = upstream.Config{Address: v.addr(), TLSMode: upstream.NoTLS, Login: upstream.OAuthLogin}
	})
	for i := range 3 {
		address := fmt.Sprintf("203.%d.113.7", i)
		alike(t, "a password", unavailableReply, func(user string) string { return b.guess(address, user, "wrong") })
		alike(t, "a token", deniedReply, func(user string) string { return b.token(address, "XOAUTH2", user, "token") })
	}
}
