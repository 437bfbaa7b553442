package tests

import (
	"encoding/json"
	"strings"
)

// auditRecord is one line of the audit log, parsed as an operator's program would.
type auditRecord struct {
	Event, Session, User, Backend, Mailbox, Mode, Mechanism, Reason, Result string

	Expunged, Arrived int

	Command, To, Code string
	Messages          int
	Commands          uint64
	Literals          []int
}

// records returns the audit records so far of an event and a user; "" matches any.
func (g *gateway) records(event, user string) (all []auditRecord) {
	g.t.Helper()
	for line := range strings.Lines(g.readFile("audit")) {
		var r auditRecord
		if !strings.HasSuffix(line, "\n") {
			break // an incomplete line
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			g.t.Fatalf("a line of the audit log: %v: %s", err, line)
		}
		if (event == "" || r.Event == event) && (user == "" || r.User == user) {
			all = append(all, r)
		}
	}
	return all
}

// countReasons counts records by their reason.
func countReasons(all []auditRecord) map[string]int {
	counts := map[string]int{}
	for _, r := range all {
		counts[r.Reason]++
	}
	return counts
}

// sumMetric returns the sum of the series that begin with this name or name and labels.
func (g *gateway) sumMetric(series string) float64 {
	g.t.Helper()
	return sumMetric(g.t, g.AdminAddr().String(), series)
}
