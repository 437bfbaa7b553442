package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"imapgate/internal/limit"
)

func TestListenerInheritsLimits(t *testing.T) {
	c := mustParse(t, minimal+`
listeners:
  - address: 0.0.0.0:993
  - address: 0.0.0.0:1993
    limits: {connections: {per_user: 7, preauth_per_address: 0}, exempt_networks: []}
  - address: 0.0.0.0:2993
    limits: {exempt_networks: [10.2.0.0/16]}
`)
	plain, busy, webmail := c.Listeners[0], c.Listeners[1], c.Listeners[2]
	want := limit.Connections{PerUserAddress: 10, PerUser: 50, PerAddress: 100, PreauthPerAddress: 20, PreauthNetworkPercent: 25, NewPerMinute: 60, NewBurst: 30}
	if got := c.LimitsOf(plain).Connections; got != want {
		t.Errorf("defaults: %+v", got)
	}
	want.PerUser, want.PreauthPerAddress = 7, 0
	if got := c.LimitsOf(busy).Connections; got != want {
		t.Errorf("changed: %+v", got)
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	if got := c.LimitsOf(plain).ExemptNetworks; !slices.Equal(got, loopback) {
		t.Errorf("exempt by default: %v", got)
	}
	if got := c.LimitsOf(busy).ExemptNetworks; len(got) != 0 {
		t.Errorf("exempt on a listener without exempt networks: %v", got)
	}
	if got := c.LimitsOf(webmail).ExemptNetworks; len(got) != 1 || got[0].String() != "10.2.0.0/16" {
		t.Errorf("exempt on the webmail's listener: %v", got)
	}
}

func TestDelaysAndBansGrow(t *testing.T) {
	_, err := parse("test.yaml", []byte(minimal+"limits: {failures: {delay: 20s, ban_duration: 48h}}\n"), noEnv)
	for _, want := range []string{"limits.failures.delay: is longer than max_delay", `limits.failures.ban_duration: "48h" is more than 24h`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing: %v", want, err)
		}
	}
}

func TestAListenerHasItsOwnFailuresAndQuota(t *testing.T) {
	c := mustParse(t, minimal+`
limits: {user_quota: {commands_per_second: 50, append_bytes_per_day: 1000}}
listeners:
  - address: 0.0.0.0:993
  - address: 0.0.0.0:1993
    limits:
      failures: {per_minute: 3, per_day: 0, delay: 0s, max_delay: 5s, ban_after: 0}
      user_quota: {append_bytes_per_day: 0, bytes_in_per_second: 65536}
`)
	plain, strict, f := c.Listeners[0], c.Listeners[1], c.Limits.Failures
	if got := c.LimitsOf(plain).Failures; got != f {
		t.Errorf("a listener without limits has %+v", got)
	}
	if got := c.LimitsOf(plain).UserQuota; got != c.Limits.UserQuota {
		t.Errorf("a listener without limits has the quota %+v", got)
	}
	want := f
	want.PerMinute, want.PerDay, want.Delay, want.MaxDelay, want.BanAfter = 3, 0, 0, 5*time.Second, 0
	if got := c.LimitsOf(strict).Failures; got != want {
		t.Errorf("failures: %+v, not %+v", got, want)
	}
	if got := c.LimitsOf(strict).UserQuota; got != (limit.Quotas{CommandsPerSecond: 50, BytesInPerSecond: 65536}) {
		t.Errorf("quota: %+v", got)
	}
}

func TestProblemsOfListenerLimitsNameTheListener(t *testing.T) {
	_, err := parse("test.yaml", []byte(minimal+`
listeners:
  - limits: {failures: {delay: 20s}, user_quota: {bytes_out_per_second: 10}}
  - {address: "0.0.0.0:1993", limits: {failures: {ban_duration: 1h, delay: -2s, per_day: -2}}}
  - {address: "0.0.0.0:2993", limits: {failures: {max_delay: 1s}}}
`), noEnv)
	for _, want := range []string{
		"listeners[0].limits.failures.delay: is longer than max_delay",
		"listeners[0].limits.user_quota.bytes_out_per_second: is less than 16384",
		"listeners[2].limits.failures.delay: is longer than max_delay",
		"listeners[1].limits.failures.ban_duration: unknown key",
		`listeners[1].limits.failures.delay: "-2s" is less than -1s`,
		`listeners[1].limits.failures.per_day: "-2" is less than -1`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing: %v", want, err)
		}
	}
}

func TestMappedIPv4NetworkIsRefused(t *testing.T) {
	_, err := parse("test.yaml", []byte(minimal+`
limits: {exempt_networks: ["::ffff:10.0.0.0/104", "::ffff:10.0.0.1"]}
listeners: [{limits: {exempt_networks: ["::ffff:0:0/96"]}}]
`), noEnv)
	for _, want := range []string{
		`limits.exempt_networks[0]: "::ffff:10.0.0.0/104": write it as an IPv4 network`,
		`limits.exempt_networks[1]: "::ffff:10.0.0.1": write it as an IPv4 network`,
		`listeners[0].limits.exempt_networks[0]: "::ffff:0:0/96": write it as an IPv4 network`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing: %v", want, err)
		}
	}
}
