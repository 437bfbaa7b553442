package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/proxy/upstream"
)

// withBackend returns minimal with other settings of its backend.
func withBackend(settings string) string {
	return strings.Replace(minimal, `{address: "mail-east.internal:993"}`, "{"+settings+"}", 1)
}

func TestEachKeyOfAddressesReachesTheBackend(t *testing.T) {
	file := writeSecretFile(t, "check-pw\n")
	c := mustParse(t, withBackend(`addresses: [{address: "mail-e1.internal:993", weight: 2}, {address: "mail-e2.internal:993", priority: 2}, {srv: _imaps._tcp.east.internal}],
  placement: spread, resolve: 1m, slow_start: 1m, max_sessions: 7, maintenance: back at noon,
  health: {interval: 7s, timeout: 3s, rise: 4, fall: 5, check: login, user: probe, password_file: `+file+`}, breaker: {failures: 2, within: 20s, hold: 9s}`))
	b := c.Backends["east"]
	if got := b.Health.Password.Reveal(); got != "check-pw" || len(c.SecretFiles) != 1 || c.SecretFiles[0].Key != "backends.east.health.password_file" {
		t.Errorf("the password is %q, of %+v", got, c.SecretFiles)
	}
	got := b.Settings
	got.Health.Password = upstream.HealthSettings{}.Password
	want := mustParse(t, withBackend(`address: "a:1"`)).Backends["east"].Settings
	want.Address = ""
	want.Addresses = []upstream.AddressSettings{{Address: "mail-e1.internal:993", Priority: 1, Weight: 2}, {Address: "mail-e2.internal:993", Priority: 2, Weight: 1}, {SRV: "_imaps._tcp.east.internal", Priority: 1, Weight: 1}}
	want.Placement, want.Resolve, want.SlowStart, want.MaxSessions, want.Maintenance = event.Spread, time.Minute, time.Minute, 7, "back at noon"
	want.Health = upstream.HealthSettings{Interval: 7 * time.Second, Timeout: 3 * time.Second, Rise: 4, Fall: 5, Check: event.CheckLogin, User: "probe", PasswordFile: file}
	want.Breaker = upstream.BreakerSettings{Failures: 2, Within: 20 * time.Second, Hold: 9 * time.Second}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("\n got %+v\nwant %+v", got, want)
	}
}

func TestBadAddressesAreExplained(t *testing.T) {
	many := make([]string, maxAddresses+1)
	for i := range many {
		many[i] = fmt.Sprintf(`{address: "m%d:1"}`, i)
	}
	file := writeSecretFile(t, "pw\n")
	for settings, want := range map[string]string{
		`login: passthrough`: "backends.east.address: is required, or addresses",
		`addresses: []`:      "backends.east.addresses: is empty: at least one is needed",
		`address: "a:1", addresses: [{address: "b:1"}]`:                   "backends.east.addresses: cannot be given together with address",
		`addresses: [{weight: 2}]`:                                        "backends.east.addresses[0]: needs either address or srv",
		`addresses: [{address: "a:1", srv: _imaps._tcp.a.b}]`:             "backends.east.addresses[0]: needs either address or srv",
		`addresses: [{address: "a:1"}, {address: "A:1"}]`:                 `backends.east.addresses[1]: "a:1" is there twice`,
		`addresses: [{address: "a"}]`:                                     `backends.east.addresses[0].address: "a" is not host:port`,
		`addresses: [{address: "a:1", weight: 0}]`:                        `backends.east.addresses[0].weight: "0" is less than 1`,
		`addresses: [{address: "a:1", priority: 1001}]`:                   `backends.east.addresses[0].priority: "1001" is more than 1000`,
		`addresses: [{srv: _imaps._tcp.a.b, weight: 2}]`:                  "backends.east.addresses[0]: priority and weight are for address",
		`addresses: [{srv: east.internal}]`:                               "is not the name of SRV records such as _imaps._tcp.example.org",
		`addresses: [{srv: _imaps._udp.a.b}]`:                             "is not the name of SRV records",
		`addresses: [{srv: _imaps._tcp.}]`:                                "is not the name of SRV records",
		`addresses: [` + strings.Join(many, ", ") + `]`:                   "backends.east.addresses: has more than 64 entries",
		`addresses: [{address: "127.0.0.1:993"}]`:                         "is listeners[0], this gateway itself",
		`address: "a:1", placement: random`:                               `backends.east.placement: "random" is not one of sticky, spread`,
		`address: "a:1", health: {check: ping}`:                           `backends.east.health.check: "ping" is not one of connect, greeting, login`,
		`address: "a:1", health: {check: login}`:                          "backends.east.health.user: is required with check: login",
		`address: "a:1", health: {check: login, user: u}`:                 "backends.east.health.password_file: is required with check: login",
		`address: "a:1", health: {user: u}`:                               "backends.east.health.user: is used only with check: login",
		`address: "a:1", health: {password_file: ` + file + `}`:           "backends.east.health.password_file: is used only with check: login",
		`address: "a:1", health: {interval: 99ms}`:                        "backends.east.health.interval: is less than 100ms; 0s turns the checks off",
		`address: "a:1", health: {fall: 0}`:                               `backends.east.health.fall: "0" is less than 1`,
		`address: "a:1", breaker: {hold: 0s}`:                             `backends.east.breaker.hold: "0s" is less than 100ms`,
		`address: "a:1", resolve: 0s`:                                     `backends.east.resolve: "0s" is less than 1s`,
		`address: "a:1", maintenance: "übermorgen"`:                       "backends.east.maintenance: must be printable ASCII of at most 200 characters",
		`address: "a:1", maintenance: "` + strings.Repeat("x", 201) + `"`: "backends.east.maintenance: must be printable ASCII of at most 200 characters",
	} {
		_, err := parse("test.yaml", []byte(withBackend(settings)), noEnv)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", settings, err, want)
		}
	}
	mustParse(t, withBackend(`address: "a:1", health: {interval: 0s}`))
}
