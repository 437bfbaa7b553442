package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// thrifty is the built binary before a Dovecot, with small budgets.
func thrifty(t *testing.T, mode, budget string) *binary {
	t.Helper()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	return startBinary(t, backend.CA, fmt.Sprintf("backends:\n  east: {address: %q, server_name: %s, ca: %s, mode: %s}", backend.TLS, testbed.DovecotName, backend.CA.File, mode),
		"routing: {source: static, static: {default: east}}\nlimits: {user_quota: {"+budget+"}}")
}

// spender is a client that is in.
func spender(t *testing.T, b *binary) *RawClient {
	t.Helper()
	c := enter(t, b.endpoint("implicit"), "")
	does(t, c, "LOGIN spender@example.org "+password)
	does(t, c, "SELECT INBOX")
	return c
}

// A budget bounds the pace from above, so these look only at the least time that
// something may take: a busy machine takes longer, never less.

func TestCommandsBeyondTheBudgetComeLater(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"reuse", "resume"} {
		b := thrifty(t, mode, "commands_per_second: 5")
		first, second := spender(t, b), spender(t, b) // of one user
		began := time.Now()
		const turns = 12
		for range turns {
			does(t, first, "NOOP")
			does(t, second, "NOOP")
		}
		if took, least := time.Since(began), (2*turns-10)*time.Second/5; took < least {
			t.Errorf("%s: %d commands took %v, less than %v", mode, 2*turns, took, least)
		}
	}
}

func TestBytesBeyondTheBudgetComeLaterInEveryMode(t *testing.T) {
	t.Parallel()
	const pace = 100 << 10
	for _, mode := range []string{"splice", "reuse", "resume"} {
		b := thrifty(t, mode, fmt.Sprintf("bytes_in_per_second: %d, bytes_out_per_second: %[1]d", pace))
		c := spender(t, b)
		message := mailOf(4*pace, "a heavy one")
		least := time.Duration(len(message)-2*pace) * time.Second / pace
		for _, use := range []struct {
			command string
			literal [][]byte
		}{{"APPEND INBOX {}", [][]byte{message}}, {"FETCH 1 BODY.PEEK[]", nil}} {
			began := time.Now()
			if use.literal == nil {
				does(t, c, "NOOP") // tells of the message
			}
			got, err := c.Do(use.command, use.literal...)
			// What comes next waits for what this one has used.
			does(t, c, "CHECK")
			if err != nil || !strings.Contains(got[len(got)-1].Text, " OK") {
				t.Fatalf("%s, %s: %v, %v", mode, use.command, got[len(got)-1], err)
			}
			if took := time.Since(began); took < least-time.Second/2 {
				t.Errorf("%s, %s: %d bytes took %v, less than %v", mode, use.command, len(message), took, least)
			}
		}
	}
}

func TestAnUploadBeyondTheDaysBudgetIsRefusedByName(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"reuse", "resume"} {
		b := thrifty(t, mode, "append_bytes_per_day: 10000")
		c := spender(t, b)
		message := mailOf(6000, "one of two")
		for i, want := range []string{" OK ", " NO [OVERQUOTA] Upload limit of the day is reached."} {
			got, err := c.Do("APPEND INBOX {}", message)
			if err != nil || !strings.Contains(got[len(got)-1].Text, want) {
				t.Fatalf("%s, message %d: %v, %v", mode, i, got, err)
			}
		}
		does(t, c, "NOOP")
		other := spender(t, b) // the same user
		if got, err := other.Do("APPEND INBOX {+}", message); err != nil || !strings.Contains(shown(got), "[OVERQUOTA]") {
			t.Errorf("%s: from another session: %v, %v", mode, got, err)
		}
		if got, err := c.Do("STATUS INBOX (MESSAGES)"); err != nil || !strings.Contains(shown(got), "MESSAGES 1)") {
			t.Errorf("%s: %v, %v", mode, got, err)
		}
	}
}
