package tests

import (
	"encoding/json"
	"strings"
	"testing"

	"imapgate/internal/limit"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// hits are what limits have done to a subject, by their names.
func (g *running) hits(subject string) map[string]string {
	g.t.Helper()
	did := map[string]string{}
	for line := range strings.Lines(g.read("audit")) {
		var r struct{ Event, Limit, Subject, Result string }
		if strings.HasSuffix(line, "\n") && json.Unmarshal([]byte(line), &r) == nil && r.Event == "limit_hit" && r.Subject == subject {
			did[r.Limit] = r.Result
		}
	}
	return did
}

// In front of a real Dovecot each bound of a user's budget holds, and is on record.
func TestABudgetHoldsAndIsOnRecord(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	g := startGateway(t, options{
		ca: backend.CA, backends: map[string]upstream.Config{only: to(backend, upstream.ImplicitTLS)},
		modes:  map[string]proxy.Mode{only: {Name: string(mux.Reuse), Mux: muxSettings()}},
		limits: limit.Config{Budgets: limit.Budgets{Commands: 20, In: 1000, Upload: 100}},
	})
	const user = "eve@example.org"
	c, answer := attempt(t, g, user, "pw")
	if !strings.HasPrefix(answer, "OK") {
		t.Fatal(answer)
	}
	mail := []byte("Subject: x\r\n\r\n" + strings.Repeat("x", 40) + "\r\n") // 56 bytes: one fits
	if err := okay(c.Do("APPEND INBOX {}", mail)); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Do("APPEND INBOX {}", mail); err == nil && !strings.Contains(shown(got), "NO [OVERQUOTA]") {
		t.Errorf("the second upload: %s", shown(got))
	}
	mustSay(t, c, "SELECT INBOX")
	for range 60 {
		mustSay(t, c, "NOOP")
	}
	mustSay(t, c, "SEARCH SUBJECT \""+strings.Repeat("y", 900)+"\"")
	mustSay(t, c, "SEARCH SUBJECT \""+strings.Repeat("y", 900)+"\"")
	mustSay(t, c, "SEARCH SUBJECT \""+strings.Repeat("y", 900)+"\"")
	want := map[string]string{"append": "refused", "commands": "slowed", "bytes_in": "slowed"}
	testbed.Within(t, Patience/2, "limits to be on record", func() bool {
		got := g.hits(user)
		for limit, did := range want {
			if got[limit] != did {
				return false
			}
		}
		return true
	})
	if g.metric(`imapgate_limit_waits_total`) == 0 || g.metric(`imapgate_limit_refusals_total`) != 1 {
		t.Error("metrics do not say so")
	}
}
