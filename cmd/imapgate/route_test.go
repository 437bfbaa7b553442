//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"imapgate/internal/testbed"
)

// routeConfig writes a configuration with a real Redis and two backends.
func routeConfig(t testing.TB) (config string, r *testbed.Redis) {
	t.Helper()
	r = testbed.StartRedis(t)
	return write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: [%q]}
auth: {default_domain: example.org}
backends: {east: {address: "127.0.0.1:1", tls: none}, west: {address: "127.0.0.1:2", tls: none}}
admin: {address: "127.0.0.1:1"}
`, r.Address)), r
}

func TestARouteIsSetShownExplainedAndRemoved(t *testing.T) {
	t.Parallel()
	file, _ := routeConfig(t)
	steps := []struct {
		args   string
		status int
		want   []string // in the output
	}{
		{"get alice", 0, []string{"alice@example.org has no record"}},
		{"explain alice", 0, []string{"could not be queried", "no route", "no such user", "imapgate:default", "no record"}},
		{"set alice backend=west state=active", 0, []string{"alice@example.org: changed"}},
		{"get Alice@example.org", 0, []string{"backend", "west", "active"}},
		{"explain alice", 0, []string{"could not be queried", "west", "* imapgate:user:alice@example.org"}},
		{"set alice backend=north", 1, []string{"is not a configured backend; configured: east, west"}},
		{"set alice state=sleepy", 1, []string{"state"}},
		{"set alice colour=red", 1, []string{"colour"}},
		{"set alice password=abc", 1, []string{"no {SCHEME}", "imapgate passwd"}},
		{"set alice password={CRYPT}$6$abc", 1, []string{"malformed", "imapgate passwd"}},
		{"set alice password={PLAIN}abc", 0, []string{"changed"}},
		{"set alice backend", 1, []string{"FIELD=VALUE"}},
		{"set alice state=active state=paused", 1, []string{"duplicate field state"}},
		{"set alice", exitUsage, []string{"FIELD=VALUE"}},
		{"get", exitUsage, []string{"one user name", "get USER"}},
		{"get a|b", 1, []string{"user name"}},
		{"get alice", 0, []string{"west", "active"}},
		{"set alice state=", 0, nil},
		{"del alice", 0, []string{"removed"}},
		{"del alice", 0, []string{"had no record"}},
	}
	for _, step := range steps {
		got := imapgate(t, "", append([]string{"route", "--config", file}, strings.Fields(step.args)...)...)
		if got.status != step.status {
			t.Errorf("%s: %+v", step.args, got)
		}
		for _, want := range step.want {
			if !strings.Contains(got.out+got.err, want) {
				t.Errorf("%s: no %q in %+v", step.args, want, got)
			}
		}
	}
}

func TestRecordsOfADomainAndTheDefaultAreSetShownAndRemoved(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	steps := []struct {
		args   string
		status int
		want   string // in the output
	}{
		{"set --domain Example.org backend=west mode=reuse", 0, "example.org: changed"},
		{"get --domain example.org", 0, "west"},
		{"explain alice", 0, "* imapgate:domain:example.org"},
		{"set --default backend=east", 0, "the default: changed"},
		{"get --default", 0, "east"},
		{"explain bob@example.net", 0, "* imapgate:default"},
		{"get --default --json", 0, `{"default":true,"record":{"backend":"east"}}`},
		{"get --domain example.org --json", 0, `{"domain":"example.org","record":{"backend":"west","mode":"reuse"}}`},
		{"set --domain example.org mode= --json", 0, `{"domain":"example.org","result":"changed"}`},
		{"set --domain example.org backend=north", 1, "configured backend"},
		{"set --domain example.org login=alice", 1, "not one of backend, mode, state"},
		{"set --default state=paused", 1, "not one of backend, mode"},
		{"set --domain example.org backend=", 1, "no field would be left"},
		{"set --domain a|b backend=east", 1, "a|b"},
		{"set --domain= backend=east", 1, "domain"},
		{"set --domain example.org", exitUsage, "at least one field"},
		{"set --default alice backend=east", 1, "FIELD=VALUE"},
		{"set --default --domain example.org backend=east", 1, "default domain"},
		{"get --default alice", exitUsage, "only one of"},
		{"del alice --domain example.org", exitUsage, "only one of"},
		{"set default backend=east", 1, "--default"},
		{"set Default backend=east", 1, "--default"},
		{"set @example.net backend=east", 1, "--domain example.net"},
		{"set example.org backend=east", 1, "--domain example.org"},
		{"del default", 1, "--default"},
		{"explain default", 1, "--default"},
		{"set default@example.org backend=east", 0, "default@example.org: changed"},
		{"del default@example.org", 0, "removed"},
		{"del --domain example.org", 0, "example.org: removed"},
		{"del --domain example.org", 0, "example.org: had no record"},
		{"get --domain example.org", 0, "example.org has no record"},
		{"del --default", 0, "the default: removed"},
	}
	for _, step := range steps {
		got := imapgate(t, "", append([]string{"route", "--config", file}, strings.Fields(step.args)...)...)
		if got.status != step.status || !strings.Contains(got.out+got.err, step.want) {
			t.Errorf("%s: no %q in %+v", step.args, step.want, got)
		}
	}
	if left := r.CLI("keys", "*"); left != "" {
		t.Errorf("Redis has %s", left)
	}
}

// A Redis user with the rights of the manual can write routes, and a change without
// the right is not made.
func TestARouteThatIsRefusedByRedisIsNotWritten(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	password := write(t, "password", "pw")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	redis := fmt.Sprintf("redis: {addresses: [%q]", r.Address)
	file = write(t, "op.yaml", strings.Replace(string(text), redis, redis+fmt.Sprintf(", username: op, password_file: %q", password), 1))
	r.CLI(strings.Fields("ACL SETUSER op on >pw ~imapgate:* resetchannels -@all +hello +auth +ping +echo +hgetall +eval +evalsha +hset +hdel +del")...)
	if got := imapgate(t, "", "route", "set", "alice", "backend=west", "mode=", "-c", file); got.status != 0 {
		t.Errorf("%+v", got)
	}
	r.CLI("ACL", "SETUSER", "op", "-hdel", "-multi")
	got := imapgate(t, "", "route", "set", "alice", "backend=east", "mode=", "-c", file)
	if got.status != 1 || !strings.Contains(got.err, "nothing was changed") || r.CLI("HGET", "imapgate:user:alice@example.org", "backend") != "west" {
		t.Errorf("%+v, and the backend is %s", got, r.CLI("HGET", "imapgate:user:alice@example.org", "backend"))
	}
}

func TestRoutesArePrintedAsJSON(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	r.CLI("HSET", "imapgate:user:bob@example.org", "backend", "east", "password", "{PLAIN}canary")
	var record struct {
		User   string
		Record map[string]string
	}
	got := imapgate(t, "", "route", "get", "bob", "--json", "-c", file)
	if err := json.Unmarshal([]byte(got.out), &record); err != nil || record.User != "bob@example.org" || record.Record["backend"] != "east" {
		t.Errorf("%+v: %v", got, err)
	}
	var explained struct{ Asked, User, Backend, Key string }
	x := imapgate(t, "", "route", "explain", "bob", "--json", "-c", file)
	if err := json.Unmarshal([]byte(x.out), &explained); err != nil || explained.Asked != "records" || explained.Backend != "east" {
		t.Errorf("%+v: %v", x, err)
	}
	if text := imapgate(t, "", "route", "get", "bob", "-c", file).out + got.out + x.out; strings.Contains(text, "canary") {
		t.Errorf("the password is printed:\n%s", text)
	}
}

func TestTerminalEscapesInRecordsAreQuoted(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	r.CLI("HSET", "imapgate:user:eve@example.org", "backend", "east\x1b[2J\nwest")
	for _, verb := range []string{"get", "explain"} {
		if got := imapgate(t, "", "route", verb, "eve", "-c", file); strings.ContainsAny(got.out+got.err, "\x1b") {
			t.Errorf("%s: %q", verb, got.out+got.err)
		}
	}
}

func TestWithoutRedisARouteIsAnError(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	r.Kill()
	for _, args := range []string{"get alice", "set alice backend=east", "del alice"} {
		if got := imapgate(t, "", append([]string{"route", "--config", file}, strings.Fields(args)...)...); got.status != 1 || strings.Count(got.err, "redis "+r.Address+": ") != 1 {
			t.Errorf("%s: %+v", args, got)
		}
	}
	if got := imapgate(t, "", "route", "explain", "alice", "-c", file); !strings.Contains(got.out, "unavailable") || !strings.Contains(got.out, "admin address 127.0.0.1:1: dial tcp") ||
		!strings.Contains(got.out, "is the gateway running?") {
		t.Errorf("%+v", got)
	}
}

func TestAUserWithoutADomainGetsAHint(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	for domain, want := range map[string]bool{"example.org": false, `""`: true} {
		text := fmt.Sprintf("listeners: [{tls: none}]\nredis: {addresses: [%q]}\nauth: {default_domain: %s}\nbackends: {east: {address: \"127.0.0.1:1\"}}\n", r.Address, domain)
		got := imapgate(t, "", "route", "set", "alice", "backend=east", "-c", write(t, "imapgate.yaml", text))
		if got.status != 0 || strings.Contains(got.out, "alice@DOMAIN is another user") != want {
			t.Errorf("default_domain %s: %+v", domain, got)
		}
	}
}

func TestStaticRoutesAreExplainedToo(t *testing.T) {
	t.Parallel()
	file := write(t, "imapgate.yaml", `
listeners: [{address: "127.0.0.1:0", tls: none}]
routing: {source: static, static: {domains: {example.org: east}}}
backends: {east: {address: "127.0.0.1:1", tls: none}}
admin: {address: ""}
`)
	got := imapgate(t, "", "route", "explain", "alice@example.org", "-c", file)
	if got.status != 0 || !strings.Contains(got.out, "no admin address") || !strings.Contains(got.out, "routing.static.domains") {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "", "route", "set", "alice@example.org", "backend=east", "-c", file); got.status != 1 || !strings.Contains(got.err, "no Redis") {
		t.Errorf("%+v", got)
	}
}

func TestAWildcardAdminAddressIsDialedOnLoopback(t *testing.T) {
	for address, want := range map[string]string{
		"0.0.0.0:9143": "127.0.0.1:9143", "[::]:9143": "[::1]:9143", ":9143": "127.0.0.1:9143", "10.0.0.1:9143": "10.0.0.1:9143",
	} {
		if got := dialableAddress(address); got != want {
			t.Errorf("%s: %s, want %s", address, got, want)
		}
	}
}

func TestRedisConnectErrorIsExplained(t *testing.T) {
	t.Parallel()
	s := testbed.StartRedis(t, "--requirepass", "pw", "--user", "reader", "on", ">pw", "~imapgate:*", "+hgetall", "+echo", "+select")
	for redis, want := range map[string]string{
		``:               "Redis requires a password: set redis.password_file",
		`username: gate`: "Redis requires a password, and redis.username has none",
		`password_file: ` + write(t, "wrong", "x\n"):                                           "Redis refuses the user name or the password",
		`database: 99, password_file: ` + write(t, "right", "pw\n"):                            "Redis has no such database",
		`sentinel_master: m, password_file: ` + write(t, "right", "pw\n"):                      "redis.addresses names no sentinels: leave out redis.sentinel_master",
		`database: 1, cluster: false, username: reader, password_file: ` + write(t, "r", "pw"): "",
	} {
		file := write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: [%q], %s}
backends: {east: {address: "127.0.0.1:1", tls: none}}
admin: {address: ""}
`, s.Address, redis))
		got := imapgate(t, "", "route", "--config", file, "get", "alice@example.org")
		if want == "" && got.status != 0 || want != "" && (got.status != 1 || !strings.Contains(got.err, want)) || strings.Contains(got.err, "unreachable") {
			t.Errorf("%s: %+v, want %q", redis, got, want)
		}
		for _, command := range []string{"ban list", "ban add 203.0.113.9", "ban del 203.0.113.9", "limits reset alice@example.org", "limits show alice@example.org"} {
			got := imapgate(t, "", append(strings.Fields(command), "--config", file)...)
			if want != "" && (got.status != 1 || !strings.Contains(got.err, want)) {
				t.Errorf("%s: %s: %+v, want %q", redis, command, got, want)
			}
		}
		got = imapgate(t, "", "route", "--config", file, "explain", "alice@example.org")
		if want != "" && !strings.Contains(got.out, want) {
			t.Errorf("%s: explained as %s, want %q", redis, got.out, want)
		}
	}
}
