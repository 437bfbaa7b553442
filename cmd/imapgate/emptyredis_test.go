//go:build unix

package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// tryLogin logs in and expects an answer that contains words.
func (g *gatewayProcess) tryLogin(t testing.TB, user, password, words string) {
	t.Helper()
	k := connect(t, g.plain)
	defer k.Close()
	k.writeLine(t, "a LOGIN "+user+" "+password)
	k.readMatch(t, `^a.*`+words)
}

// writeAdminConfig writes the configuration with the gateway's actual admin address.
func (g *gatewayProcess) writeAdminConfig(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "asking.yaml", strings.Replace(string(text), `admin: {address: "127.0.0.1:0"}`, fmt.Sprintf("admin: {address: %q}", g.admin), 1))
}

// fetchPage returns the response of the admin address.
func fetchPage(t testing.TB, admin, path string) string {
	t.Helper()
	got, err := http.Get("http://" + admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// After a flush of Redis no user is denied until an operator accepts it.
func TestFlushedRedisIsAFaultUntilAccepted(t *testing.T) {
	t.Parallel()
	for name, method := range map[string]string{"passthrough": "passthrough", "hashes in Redis": "redis"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := testbed.StartRedis(t)
			file, trail := gatewayConfig(t, fmt.Sprintf(`
redis: {addresses: [%q]}
auth: {methods: [%s], default_domain: example.org}
limits: {exempt_networks: []}
`, r.Address, method))
			for _, u := range []string{"alice", "bob"} {
				r.CLI("HSET", "imapgate:user:"+u+"@example.org", "backend", "east", "password", "{PLAIN}demo")
			}
			s := startServe(t, file)
			s.awaitMatch(t, "receiving route changes from Redis")
			s.tryLogin(t, "alice", "demo", " OK ")
			s.tryLogin(t, "nobody", "demo", "AUTHENTICATIONFAILED")
			r.CLI("FLUSHALL")
			for range 3 {
				s.tryLogin(t, "alice", "demo", " OK ")
				s.tryLogin(t, "bob", "demo", "UNAVAILABLE")
			}
			testkit.Eventually(t, "imapgate_routes_emptied 1", func() bool { return strings.Contains(fetchPage(t, s.admin, "/metrics"), "imapgate_routes_emptied 1") }, s.String)
			s.awaitMatch(t, "lost the route records")
			explained := imapgate(t, "", "route", "explain", "bob", "-c", s.writeAdminConfig(t, file))
			if !strings.Contains(explained.out, "of 1 known records is missing") {
				t.Errorf("explained as %+v", explained)
			}
			shown := imapgate(t, "", "limits", "show", "bob@example.org", "-c", s.writeAdminConfig(t, file))
			if regexp.MustCompile(`failed logins \(.*\) +[1-9]`).MatchString(shown.out) || !strings.Contains(shown.out, "failed logins (1 hour)") {
				t.Errorf("logins that found no record count as guesses: %+v", shown)
			}
			if done := imapgate(t, "", "route", "accept-empty", "-c", file); done.status != 0 || !strings.Contains(done.out, "accepted") {
				t.Errorf("accepted as %+v", done)
			}
			testkit.Eventually(t, "imapgate_routes_emptied 0", func() bool { return strings.Contains(fetchPage(t, s.admin, "/metrics"), "imapgate_routes_emptied 0") }, s.String)
			s.tryLogin(t, "bob", "demo", "AUTHENTICATIONFAILED")
			s.tryLogin(t, "alice", "demo", "AUTHENTICATIONFAILED")
			text, err := os.ReadFile(trail)
			if err != nil {
				t.Fatal(err)
			}
			for _, event := range []string{`"event":"routes_emptied"`, `"event":"routes_restored"`} {
				if n := strings.Count(string(text), event); n != 1 {
					t.Errorf("%d times %s in:\n%s", n, event, text)
				}
			}
			if n := strings.Count(s.String(), "lost the route records"); n != 1 {
				t.Errorf("it is logged %d times", n)
			}
		})
	}
}
