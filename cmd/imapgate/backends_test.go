//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy"
	"imapgate/proxy/relay/mux"
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
		{"backends --json", `{"backends":[{"name":"east","mode":"splice","sessions":{},"spliced":false,"broken_to_users":0,"spliced_users":0}]}`},
	})
}

func TestProtocolViolationsAreDescribed(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	states := []proxy.BackendState{
		{Name: "east", Mode: "resume", Sessions: map[event.Mode]int{"resume": 7, "splice": 2}, ViolationStatus: mux.ViolationStatus{AffectedUsers: 3, SplicedUsers: 1}},
		{Name: "north", Mode: "splice", Sessions: map[event.Mode]int{"splice": 4}},
		{Name: "south", Mode: "reuse", ViolationStatus: mux.ViolationStatus{AffectedUsers: 1}},
		{Name: "west", Mode: "resume", ViolationStatus: mux.ViolationStatus{Spliced: true, SplicedUntil: noon, AffectedUsers: 5}},
	}
	want := `BACKEND  MODE    SESSIONS         MULTIPLEXED
east     resume  9 (2 in splice)  yes, except for 1 of the 3 users with protocol violations in the last hour
north    splice  4                no
south    reuse   0                yes; 1 user had protocol violations in the last hour
west     resume  0                no, spliced until 2026-01-02T12:00:00Z after protocol violations
`
	if got := formatBackends(states); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	text, err := json.Marshal(states[3])
	if err != nil || !strings.Contains(string(text), `"spliced":true,"spliced_until":"2026-01-02T12:00:00Z"`) {
		t.Errorf("as JSON: %s, %v", text, err)
	}
}
