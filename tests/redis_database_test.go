package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// Routes, limits, bans and the audit stream are all in the configured database, over a unix
// socket and with the permissions in docs/operating/redis.md.
func TestAllRedisKeysAreInTheConfiguredDatabase(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "redis.sock")
	redis := testbed.StartRedis(t, "--unixsocket", socket)
	redis.CLI(append([]string{"acl", "setuser", "imapgate", "on", ">pw", "~imapgate:*"}, append(documentedRights(t), "+select")...)...)
	redis.CLI("-n", "3", "hset", "imapgate:user:alice@example.org", "backend", "east")
	ca, backend := testbed.NewCA(t), startStub(t, nil)
	secret := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(secret, []byte("\xef\xbb\xbfpw\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := startProcess(t, ca,
		fmt.Sprintf("redis: {addresses: [\"unix://%s\"], database: 3, username: imapgate, password_file: %s}", socket, secret),
		fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", backend.Addr()),
		"limits: {exempt_networks: []}",
		"audit: {sinks: [{type: redis, on_failure: drop}]}")
	testkit.Eventually(t, "limits to be shared", func() bool {
		return strings.Contains(gate.process.Output(), "limits are shared")
	})
	phone, err := loginLight(gate, "alice@example.org")
	if err != nil {
		t.Fatal(err)
	}
	defer phone.conn.Close() // the gateway stops before it
	keys := ""
	for _, want := range []string{"imapgate:limit:gateways", "imapgate:limit:sessions:user:alice@example.org", "imapgate:limit:rate:", "imapgate:audit"} {
		testkit.Eventually(t, want+" to be written", func() bool {
			keys = redis.CLI("-n", "3", "keys", "*")
			return strings.Contains(keys, want)
		})
	}
	if size := redis.CLI("dbsize"); size != "0" {
		t.Errorf("another database has %s keys: %s", size, redis.CLI("keys", "*"))
	}
	if denied := redis.CLI("acl", "log"); denied != "" {
		t.Errorf("a right is missing in docs/operating/redis.md: %s", denied)
	}
}

// documentedRights returns what follows the keys of the gateway's user in docs/operating/redis.md.
func documentedRights(t *testing.T) []string {
	t.Helper()
	page := string(testkit.Must(os.ReadFile("../docs/operating/redis.md"))(t))
	_, rights, found := strings.Cut(page, "ACL SETUSER imapgate on >PASSWORD ~imapgate:* ")
	rights, _, _ = strings.Cut(rights, "\n\n")
	if !found || !strings.Contains(rights, "-@all") {
		t.Fatal("docs/operating/redis.md does not show the rights of the gateway's user")
	}
	return strings.Fields(rights)
}

// The log reports why a gateway cannot use its Redis at the start, and the gateway uses it
// once that is fixed.
func TestLogReportsRedisErrors(t *testing.T) {
	t.Parallel()
	redis := testbed.StartRedis(t)
	redis.CLI("hset", "imapgate:user:alice@example.org", "backend", "east")
	redis.CLI("config", "set", "requirepass", "pw")
	ca, backend := testbed.NewCA(t), startStub(t, nil)
	gate := startProcess(t, ca, fmt.Sprintf("redis: {addresses: [%q]}", redis.Address),
		fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", backend.Addr()))
	const want = "Redis requires a password: set redis.password_file"
	for _, line := range []string{"route changes are not received as they happen", "limits are local"} {
		testkit.Eventually(t, line+": "+want, func() bool {
			for entry := range strings.Lines(gate.process.Output()) {
				if strings.Contains(entry, line) && strings.Contains(entry, want) {
					return true
				}
			}
			return false
		})
	}
	if _, err := loginLight(gate, "alice@example.org"); err == nil || !strings.Contains(err.Error(), "UNAVAILABLE") {
		t.Errorf("%v", err)
	}
	redis.CLI("-a", "pw", "--no-auth-warning", "config", "set", "requirepass", "")
	testkit.Eventually(t, "a user to get in", func() bool {
		phone, err := loginLight(gate, "alice@example.org")
		if err != nil {
			return false
		}
		_ = phone.conn.Close() // the login succeeded
		return true
	})
}
