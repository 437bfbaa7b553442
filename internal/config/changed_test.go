package config

import (
	"slices"
	"testing"
)

func TestChangedKeysAreListed(t *testing.T) {
	const before = `
listeners: [{address: "127.0.0.1:143", tls: none}]
auth: {default_domain: example.org}
routing: {source: static, static: {default: east}}
backends:
  east: {address: "mail1:993"}
  west: {address: "mail2:993"}
`
	load := func(text string) *Config {
		c, err := parse("f", []byte(text), func(string) (string, bool) { return "", false })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, c := range []struct {
		text string
		want []string
	}{
		{before, nil},
		{"# a comment\n" + before + "log: {level: info}\n", nil}, // the default, explicitly
		{before + "log: {level: debug}\nlimits: {drain_timeout: 1s}\n", []string{"limits.drain_timeout", "log.level"}},
		{before + "redis: {}\n", []string{"redis"}},
		{before + "  north: {address: \"mail3:993\"}\n", []string{"backends.north"}},
		{before + "  # none\n" + "tls: {certificates: [{cert: a, key: b}]}\n", []string{"tls.certificates"}},
	} {
		if got := load(before).ChangedKeys(load(c.text)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.text, got, c.want)
		}
		if got := load(c.text).ChangedKeys(load(before)); !slices.Equal(got, c.want) {
			t.Errorf("in reverse, %s: %q, want %q", c.text, got, c.want)
		}
	}
	inside := load(before)
	east := inside.Backends["east"]
	east.Mode, east.Address = "reuse", "mail9:993"
	inside.Backends["east"] = east
	if got, want := load(before).ChangedKeys(inside), []string{"backends.east.address", "backends.east.mode"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
