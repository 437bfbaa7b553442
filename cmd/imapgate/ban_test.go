//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imapgate/internal/admin/legacy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

const noExemptNetworks = `
auth: {default_domain: example.org}
routing: {source: static, static: {default: east}}
limits: {exempt_networks: [], connections: {new_per_minute: 0}, user_quota: {append_bytes_per_day: 1000}}
`

// readGreeting returns the greeting of a gateway.
func readGreeting(t testing.TB, address string) string {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(testTimeout)) // cannot fail for a new connection
	line, _ := bufio.NewReader(c).ReadString('\n')
	return line
}

// awaitGreeting waits until the greeting of every gateway contains words.
func awaitGreeting(t testing.TB, words string, gateways ...*gatewayProcess) {
	t.Helper()
	for _, g := range gateways {
		testkit.Eventually(t, words, func() bool { return strings.HasPrefix(readGreeting(t, g.plain), words) })
	}
}

// runSteps runs commands and checks that their output contains words.
func runSteps(t testing.TB, config string, steps [][2]string) {
	t.Helper()
	for _, step := range steps {
		got := imapgate(t, "", append(strings.Fields(step[0]), "--config", config)...)
		if got.status != 0 || !strings.Contains(got.out, step[1]) {
			t.Fatalf("%s: %+v, want %q", step[0], got, step[1])
		}
	}
}

func TestCommandLineBanReachesEveryGateway(t *testing.T) {
	t.Parallel()
	more := fmt.Sprintf("redis: {addresses: [%q]}", testbed.StartRedis(t).Address) + noExemptNetworks
	oneFile, oneAudit := gatewayConfig(t, more)
	twoFile, twoAudit := gatewayConfig(t, more)
	one, two := startServe(t, oneFile), startServe(t, twoFile)
	awaitGreeting(t, "* OK", one, two)
	live := connect(t, two.plain)
	runSteps(t, oneFile, [][2]string{
		{"ban list", "no active bans"},
		{"ban add 127.0.0.1 --for 1h --note ticket-4711", "127.0.0.1/32 is banned for 1h"},
	})
	awaitGreeting(t, "* BYE [UNAVAILABLE] Too many connections.", one, two)
	live.writeLine(t, "a NOOP")
	live.readMatch(t, "^a OK") // a ban ends no session
	runSteps(t, twoFile, [][2]string{
		{"ban list", "operator  1      ticket-4711"},
		{"limits show 127.0.0.1", "by an operator: ticket-4711"},
		{"limits show alice", "alice@example.org"},
		{"limits show alice", "0 of 1000 bytes (UTC)"},
		{"limits reset Alice", "failed logins were reset: alice@example.org"},
		{"ban del 127.0.0.0/24", "no longer banned: 127.0.0.1/32"},
		{"ban del 127.0.0.1", "was not banned"},
	})
	awaitGreeting(t, "* OK", one, two)
	for _, file := range []string{oneAudit, twoAudit} {
		var text string
		testkit.Eventually(t, "ban_removed in the audit log", func() bool {
			read, _ := os.ReadFile(file) // an error counts as an empty file
			text = string(read)
			return strings.Contains(text, `"event":"ban_removed"`)
		}, func() string { return text })
		if n := strings.Count(text, `"event":"ban_added"`); n != 1 || !strings.Contains(text, "ticket-4711") {
			t.Errorf("%d bans are recorded:\n%s", n, text)
		}
	}
}

func TestABanOfExemptAddressesWarns(t *testing.T) {
	t.Parallel()
	file, _ := routeConfig(t)
	runSteps(t, file, [][2]string{
		{"ban add 127.0.0.1", "exempt by limits.exempt_networks: 127.0.0.0/8: the ban has no effect there"},
		{"ban add 127.0.0.1 --why former --json", `"exempt":["127.0.0.0/8"]`},
	})
	if got := imapgate(t, "", "ban", "add", "192.0.2.7", "-c", file); strings.Contains(got.out, "exempt") {
		t.Errorf("%+v", got)
	}
}

func TestBansArePrintedAsJSON(t *testing.T) {
	t.Parallel()
	file, _ := gatewayConfig(t, fmt.Sprintf("redis: {addresses: [%q]}", testbed.StartRedis(t).Address)+noExemptNetworks)
	runSteps(t, file, [][2]string{{"ban add 2001:db8::7 --json", `"network":"2001:db8::/64"`}})
	var all []legacy.Ban
	got := imapgate(t, "", "ban", "list", "--json", "-c", file)
	if err := json.Unmarshal([]byte(got.out), &all); err != nil || len(all) != 1 || all[0].Reason != "operator" || time.Until(all[0].Until) < 23*time.Hour {
		t.Errorf("%+v: %v", got, err)
	}
	var s legacy.LimitStatus
	got = imapgate(t, "", "limits", "show", "2001:db8::1", "--json", "-c", file)
	if err := json.Unmarshal([]byte(got.out), &s); err != nil || s.Ban == nil || len(s.Failures) != 6 {
		t.Errorf("%+v: %v", got, err)
	}
}

func TestWithoutRedisTheRunningGatewayIsUsed(t *testing.T) {
	t.Parallel()
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("a-token-of-thirty-two-characters"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, audit := gatewayConfig(t, noExemptNetworks)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	locked := fmt.Sprintf(`admin: {address: "127.0.0.1:0", token_file: %q}`, token)
	file = write(t, "locked.yaml", strings.Replace(string(text), `admin: {address: "127.0.0.1:0"}`, locked, 1))
	s := startServe(t, file)
	at := func(admin string) string {
		return write(t, "there.yaml", strings.Replace(string(text), `admin: {address: "127.0.0.1:0"}`, admin, 1))
	}
	withToken := at(fmt.Sprintf("admin: {address: %q, token_file: %q}", s.admin, token))
	runSteps(t, withToken, [][2]string{
		{"ban list", "no active bans"},
		{"limits reset alice --json", `"user":"alice@example.org"`},
		{"ban add 127.0.0.1", "127.0.0.1/32 is banned for 24h"},
		{"ban list", "127.0.0.1/32"},
		{"limits show 127.0.0.1", "banned"},
	})
	awaitGreeting(t, "* BYE [UNAVAILABLE] Too many connections.", s)
	for args, config := range map[string]string{
		"ban del 127.0.0.1":          at(fmt.Sprintf("admin: {address: %q}", s.admin)),
		"ban list":                   at(`admin: {address: ""}`),
		"ban add nobody":             withToken,
		"ban add":                    withToken,
		"ban add 127.0.0.1 --for 0s": withToken,
		"limits show a|b":            withToken,
		"limits reset 127.0.0.1":     withToken,
		"ban add 10.0.0.0/7":         withToken,
		"limits show":                withToken,
	} {
		want := map[string]string{
			"ban del 127.0.0.1": "set admin.token_file", "ban list": "set admin.address", "ban add nobody": "neither an address nor a network",
			"ban add": "one address or network is needed", "ban add 127.0.0.1 --for 0s": "the duration must be positive", "limits show a|b": "neither an address nor a valid user name",
			"limits reset 127.0.0.1": "imapgate ban del", "ban add 10.0.0.0/7": "10.0.0.0/7",
			"limits show": "one user or address is needed",
		}[args]
		got := imapgate(t, "", append(strings.Fields(args), "--config", config)...)
		wantStatus := exitFailed
		if len(strings.Fields(args)) == 2 && args != "ban list" { // an argument is missing
			wantStatus = exitUsage
		}
		if got.status != wantStatus || strings.Count(got.err, want) != 1 {
			t.Errorf("%s: %+v, want %q once", args, got, want)
		}
	}
	runSteps(t, withToken, [][2]string{{"ban del 127.0.0.1", "no longer banned: 127.0.0.1/32"}})
	awaitGreeting(t, "* OK", s)
	for _, want := range []string{`"event":"operator_action"`, `"action":"ban"`, `"action":"unban"`} {
		var done []byte
		testkit.Eventually(t, want+" in the audit log", func() bool {
			done, _ = os.ReadFile(audit) // an error counts as an empty file
			return strings.Contains(string(done), want)
		}, func() string { return string(done) })
	}
}
