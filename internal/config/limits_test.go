package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestAListenerHasWhatItDoesNotChange(t *testing.T) {
	c := mustParse(t, minimal+`
listeners:
  - address: 0.0.0.0:993
  - address: 0.0.0.0:1993
    limits: {connections: {per_user: 7, preauth_per_address: 0}, exempt: []}
  - address: 0.0.0.0:2993
    limits: {exempt: [10.2.0.0/16]}
`)
	plain, busy, webmail := c.Listeners[0], c.Listeners[1], c.Listeners[2]
	want := Connections{PerUserAddress: 10, PerUser: 50, PerAddress: 100, PreauthPerAddress: 20, NewPerMinute: 60, NewBurst: 30}
	if got := c.Limits.Connections.On(plain); got != want {
		t.Errorf("defaults: %+v", got)
	}
	want.PerUser, want.PreauthPerAddress = 7, 0
	if got := c.Limits.Connections.On(busy); got != want {
		t.Errorf("changed: %+v", got)
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	if got := c.Limits.ExemptOn(plain); !slices.Equal(got, loopback) {
		t.Errorf("exempt by default: %v", got)
	}
	if got := c.Limits.ExemptOn(busy); len(got) != 0 {
		t.Errorf("exempt on a listener that exempts nobody: %v", got)
	}
	if got := c.Limits.ExemptOn(webmail); len(got) != 1 || got[0].String() != "10.2.0.0/16" {
		t.Errorf("exempt on the webmail's listener: %v", got)
	}
}

func TestDelaysAndBansGrow(t *testing.T) {
	_, err := parse("test.yaml", []byte(minimal+"limits: {failures: {delay: 20s, ban: 48h}}\n"), noEnv)
	for _, want := range []string{"limits.failures.delay: is longer than max_delay", `limits.failures.ban: "48h" is more than 24h`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing: %v", want, err)
		}
	}
}
