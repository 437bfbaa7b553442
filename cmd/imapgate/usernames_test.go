//go:build unix

package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// spellings has names as operators write them, and their canonical forms.
var spellings = map[string]string{
	"R&D='x+y@example.net": "r&d='x+y@example.net",
	"JO\u0308RG":           "j\u00f6rg@example.org",
	`Domain\alice`:         "alice@corp.example",
}

// widestConfig writes a configuration that allows all possible names.
func widestConfig(t testing.TB) (file string, cfg *config.Config) {
	t.Helper()
	file = write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
redis: {addresses: [%q]}
auth:
  default_domain: example.org
  names: {characters: "+'&=", utf8: true, prefixes: {DOMAIN: corp.example}}
backends: {east: {address: "127.0.0.1:1", tls: none}}
admin: {address: "127.0.0.1:1"}
`, testbed.StartRedis(t).Address))
	cfg, err := config.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return file, cfg
}

func TestEveryCommandTakesTheNamesOfTheConfiguration(t *testing.T) {
	t.Parallel()
	file, cfg := widestConfig(t)
	path := filepath.Join(t.TempDir(), "audit.log")
	l, err := audit.Open(testbed.WithDefaults(audit.Config{Settings: audit.Settings{Path: path}}, "path", "first_per_minute"), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	client := &audit.Client{Session: "s1", Peer: netip.MustParseAddrPort("10.0.0.9:4711")}
	for name, canonical := range spellings {
		u, err := cfg.Auth.NameRules.Canonicalize(name)
		if err != nil || u.String() != canonical {
			t.Fatalf("%q is %q, %v", name, u, err)
		}
		_ = l.LoginAccepted(client, &audit.Login{User: u, Backend: "east", RouteSource: "cache", Mechanism: "LOGIN"})
		_ = l.LoginRefused(client, &audit.Login{ClaimedName: name + "|", Mechanism: "LOGIN"}, event.BadName)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for name, canonical := range spellings {
		for _, step := range []struct {
			input string
			args  []string
			want  string
		}{
			{"", []string{"route", "set", name, "backend=east", "login=" + canonical, "-c", file}, canonical + ": changed"},
			{"", []string{"route", "get", name, "-c", file}, canonical},
			{"", []string{"route", "explain", name, "-c", file}, "* imapgate:user:" + canonical},
			{"", []string{"limits", "show", name, "-c", file}, canonical},
			{"", []string{"limits", "reset", name, "-c", file}, canonical},
			{"right horse\n", []string{"passwd", "--user", name, "-c", file}, canonical + ":{"},
			{"", []string{"audit", "grep", "--user", canonical, path}, canonical},
			{"", []string{"audit", "grep", "--user", name + "|", path}, "bad_name"},
			{"", []string{"route", "del", name, "-c", file}, "removed"},
		} {
			got := imapgate(t, step.input, step.args...)
			for n := 0; n < 20 && strings.Contains(got.err, "timeout"); n++ { // Redis may time out on a busy machine
				got = imapgate(t, step.input, step.args...)
			}
			if got.status != 0 || !strings.Contains(got.out, step.want) {
				t.Errorf("%q: no %q in %+v", step.args, step.want, got)
			}
		}
	}
}

func TestNamesThatNoConfigurationAllowsAreRefused(t *testing.T) {
	t.Parallel()
	file, _ := widestConfig(t)
	for _, name := range []string{`OTHER\alice`, "a*b", "a:b", "a/b", "..", "{a}", "a\u202eb"} {
		for _, args := range [][]string{{"route", "get"}, {"route", "del"}, {"limits", "show"}, {"limits", "reset"}} {
			if got := imapgate(t, "", append(args, name, "-c", file)...); got.status == 0 {
				t.Errorf("%q %q: %+v", args, name, got)
			}
		}
	}
	if got := imapgate(t, "right horse\n", "passwd", "--user", "o'brien"); got.status == 0 {
		t.Errorf("passwd without a configuration: %+v", got)
	}
}
