//go:build unix

package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
)

func TestBackendsOfTheRunningGatewayArePrinted(t *testing.T) {
	t.Parallel()
	file, _ := gatewayConfig(t, noExemptNetworks)
	s := startServe(t, file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	there := write(t, "there.yaml", strings.Replace(string(text), `admin: {address: "127.0.0.1:0"}`, fmt.Sprintf("admin: {address: %q}", s.admin), 1))
	runSteps(t, there, [][2]string{
		{"backends", "BACKEND  MODE"},
		{"backends", "east"},
		{"backends --json", `{"backends":[{"name":"east","mode":"splice","sessions":{},`},
	})
}

func TestProtocolViolationsAreDescribed(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	backends := []api.Backend{
		{Name: "east", Mode: "resume", Sessions: map[string]int{"resume": 7, "splice": 2}, AffectedUsers: 3, SplicedUsers: 1, IfLost: api.Forecast{Yes: 6, Pause: 1, No: 2}},
		{Name: "north", Mode: "splice", Sessions: map[string]int{"splice": 4}, Addresses: []api.Address{{Address: "n:993", State: "down", Why: "health check: refused", Priority: 1, Weight: 1}}},
		{Name: "south", Mode: "reuse", AffectedUsers: 1},
		{Name: "west", Mode: "resume", Spliced: true, SplicedUntil: api.Time{Time: noon}, AffectedUsers: 5, Maintenance: "back at noon"},
	}
	want := `BACKEND  MODE    SESSIONS         LOGINS/S  SURVIVE  MULTIPLEXED
east     resume  9 (2 in splice)  0.0       7 of 9   yes, except for 1 of the 3 users with protocol violations in the last hour
north    splice  4                0.0       0 of 0   no
south    reuse   0                0.0       0 of 0   yes; 1 user had protocol violations in the last hour
west     resume  0                0.0       0 of 0   no, spliced until 2026-01-02T12:00:00Z after protocol violations
west is under maintenance: back at noon

ADDRESS  BACKEND  STATE  FOR  PRIO/WEIGHT  SESSIONS  LOGINS/S  LATENCY  FAILED  WHY
n:993    north    down   -    1/1          0         0.0       -        0       health check: refused
`
	if got := formatBackends(&cobra.Command{}, backends); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
