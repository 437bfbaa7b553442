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
	"imapgate/internal/testbed"
)

// spellings are names as an operator says them, and as they are kept.
var spellings = map[string]string{
	"R&D='x+y@example.net": "r&d='x+y@example.net",
	"JO\u0308RG":           "j\u00f6rg@example.org",
	`Domain\alice`:         "alice@corp.example",
}

// widestConfig is a configuration with all names that can be allowed.
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
	l, err := audit.Open(audit.Config{Path: path}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	client := &audit.Client{Session: "s1", Peer: netip.MustParseAddrPort("10.0.0.9:4711")}
	for said, kept := range spellings {
		u, err := cfg.Auth.NameRules.Canonicalize(said)
		if err != nil || u.String() != kept {
			t.Fatalf("%q is %q, %v", said, u, err)
		}
		_ = l.LoginAccepted(client, &audit.Login{User: u, Backend: "east", RouteSource: "cache", Mechanism: "LOGIN"})
		_ = l.LoginRefused(client, &audit.Login{ClaimedName: said + "|", Mechanism: "LOGIN"}, audit.BadName)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for said, kept := range spellings {
		for _, step := range []struct {
			input string
			args  []string
			want  string
		}{
			{"", []string{"route", "set", said, "backend=east", "login=" + kept, "-c", file}, kept + ": changed"},
			{"", []string{"route", "get", said, "-c", file}, kept},
			{"", []string{"route", "explain", said, "-c", file}, "* imapgate:user:" + kept},
			{"", []string{"limits", "show", said, "-c", file}, kept},
			{"", []string{"limits", "reset", said, "-c", file}, kept},
			{"right horse\n", []string{"passwd", "--user", said, "-c", file}, kept + ":{"},
			{"", []string{"audit", "grep", "--user", kept, path}, kept},
			{"", []string{"audit", "grep", "--user", said + "|", path}, "bad_name"},
			{"", []string{"route", "del", said, "-c", file}, "removed"},
		} {
			got := imapgate(t, step.input, step.args...)
			for n := 0; n < 20 && strings.Contains(got.err, "timeout"); n++ { // Redis, on a busy machine
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
	for _, said := range []string{`OTHER\alice`, "a*b", "a:b", "a/b", "..", "{a}", "a\u202eb"} {
		for _, args := range [][]string{{"route", "get"}, {"route", "del"}, {"limits", "show"}, {"limits", "reset"}} {
			if got := imapgate(t, "", append(args, said, "-c", file)...); got.status == 0 {
				t.Errorf("%q %q: %+v", args, said, got)
			}
		}
	}
	if got := imapgate(t, "right horse\n", "passwd", "--user", "o'brien"); got.status == 0 {
		t.Errorf("passwd without a configuration: %+v", got)
	}
}
