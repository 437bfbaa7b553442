package tests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
)

// startQuotaGateway starts the program and a Dovecot, with small quotas.
func startQuotaGateway(t *testing.T, mode, budget string) *gatewayProcess {
	t.Helper()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	return startProcess(t, backend.CA, fmt.Sprintf("backends:\n  east: {address: %q, server_name: %s, ca: %s, mode: %s}", backend.TLS, testbed.DovecotName, backend.CA.File, mode),
		"routing: {source: static, static: {default: east}}\nlimits: {user_quota: {"+budget+"}}")
}

// loginQuotaUser opens a session.
func loginQuotaUser(t *testing.T, b *gatewayProcess) *RawClient {
	t.Helper()
	c := mustDial(t, b.endpoint("implicit"), "")
	requireOK(t, c, "LOGIN spender@example.org "+password)
	requireOK(t, c, "SELECT INBOX")
	return c
}

// A quota limits the rate, so these tests check only the minimum durations. A busy machine
// takes longer, never less.

func TestCommandsOverQuotaAreDelayed(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"reuse", "resume"} {
		b := startQuotaGateway(t, mode, "commands_per_second: 5")
		first, second := loginQuotaUser(t, b), loginQuotaUser(t, b) // the same user
		start := time.Now()
		const turns = 12
		for range turns {
			requireOK(t, first, "NOOP")
			requireOK(t, second, "NOOP")
		}
		if elapsed, least := time.Since(start), (2*turns-10)*time.Second/5; elapsed < least {
			t.Errorf("%s: %d commands took %v, less than %v", mode, 2*turns, elapsed, least)
		}
	}
}

func TestBytesOverQuotaAreDelayedInEveryMode(t *testing.T) {
	t.Parallel()
	const rate = 100 << 10
	for _, mode := range []string{"splice", "reuse", "resume"} {
		b := startQuotaGateway(t, mode, fmt.Sprintf("bytes_in_per_second: %d, bytes_out_per_second: %[1]d", rate))
		c := loginQuotaUser(t, b)
		message := messageOfSize(4*rate, "a heavy one")
		least := time.Duration(len(message)-2*rate) * time.Second / rate
		for _, use := range []struct {
			command string
			literal [][]byte
		}{{"APPEND INBOX {}", [][]byte{message}}, {"FETCH 1 BODY.PEEK[]", nil}} {
			start := time.Now()
			if use.literal == nil {
				requireOK(t, c, "NOOP") // reports the message
			}
			got, err := c.Do(use.command, use.literal...)
			// The next command waits for the quota that this one has used.
			requireOK(t, c, "CHECK")
			if err != nil || !strings.Contains(got[len(got)-1].Text, " OK") {
				t.Fatalf("%s, %s: %v, %v", mode, use.command, got[len(got)-1], err)
			}
			if elapsed := time.Since(start); elapsed < least-time.Second/2 {
				t.Errorf("%s, %s: %d bytes took %v, less than %v", mode, use.command, len(message), elapsed, least)
			}
		}
	}
}

func TestUploadOverTheDailyQuotaIsRefused(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"reuse", "resume"} {
		b := startQuotaGateway(t, mode, "append_bytes_per_day: 10000")
		c := loginQuotaUser(t, b)
		message := messageOfSize(6000, "one of two")
		for i, want := range []string{" OK ", " NO [OVERQUOTA] Upload limit of the day is reached."} {
			got, err := c.Do("APPEND INBOX {}", message)
			if err != nil || !strings.Contains(got[len(got)-1].Text, want) {
				t.Fatalf("%s, message %d: %v, %v", mode, i, got, err)
			}
		}
		requireOK(t, c, "NOOP")
		other := loginQuotaUser(t, b) // the same user
		if got, err := other.Do("APPEND INBOX {+}", message); err != nil || !strings.Contains(formatResponses(got), "[OVERQUOTA]") {
			t.Errorf("%s: from another session: %v, %v", mode, got, err)
		}
		if got, err := c.Do("STATUS INBOX (MESSAGES)"); err != nil || !strings.Contains(formatResponses(got), "MESSAGES 1)") {
			t.Errorf("%s: %v, %v", mode, got, err)
		}
	}
}
