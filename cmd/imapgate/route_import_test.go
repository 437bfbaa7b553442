//go:build unix

package main

import (
	"fmt"
	"strings"
	"testing"
)

func TestRoutesAreImportedAndExported(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	run := func(status int, args ...string) commandResult {
		t.Helper()
		got := imapgate(t, "", append([]string{"route", "--config", file}, args...)...)
		if got.status != status {
			t.Errorf("%q: %+v", args, got)
		}
		return got
	}
	csv := write(t, "routes.csv", `kind,name,backend,mode,state
user,Alice,east,resume,
user,bob@example.org,west,,paused
domain,example.net,west,,
default,,east,,
user,a|b,east,,
user,carol,north,,
user,dave,east
`)
	if got := run(1, "import", csv, "--dry-run"); !strings.Contains(got.out, "4 would be created, 0 would be changed, 0 unchanged, 3 refused") || r.CLI("KEYS", "imapgate:*") != "" {
		t.Errorf("%s", got.out)
	}
	if got := run(1, "import", csv); !strings.Contains(got.out, "4 created, 0 changed, 0 unchanged, 3 refused") || !strings.Contains(got.out, "line 8: 3 fields, and the header has 5") || !strings.Contains(got.out, "is not a configured backend") {
		t.Errorf("%s", got.out)
	}
	if got := run(1, "import", csv, "--json"); !strings.Contains(got.out, `{"created":0,"changed":0,"unchanged":4,"refused":3,"errors":[`) {
		t.Errorf("%s", got.out)
	}
	want := `kind,name,backend,login,mode,state
default,,east,,,
domain,example.net,west,,,
user,alice@example.org,east,,resume,
user,bob@example.org,west,,,paused
`
	got := strings.Split(strings.TrimSpace(run(0, "export").out), "\n")
	for _, line := range strings.Split(strings.TrimSpace(want), "\n") {
		if !strings.Contains(strings.Join(got, "\n"), line) {
			t.Errorf("%q lacks %q", got, line)
		}
	}
	again := write(t, "again.csv", strings.Join(got, "\n")+"\n")
	if got := run(0, "import", again); got.out != "0 created, 0 changed, 4 unchanged, 0 refused\n" {
		t.Errorf("%s", got.out)
	}
	if got := run(0, "list", "--backend", "west"); !strings.Contains(got.out, "bob@example.org") || strings.Contains(got.out, "alice") || !strings.Contains(got.out, "2 records") {
		t.Errorf("%s", got.out)
	}
	if got := run(0, "list", "--name", "*b@example.org"); !strings.Contains(got.out, "bob@") || strings.Contains(got.out, "alice") {
		t.Errorf("%s", got.out)
	}
	if got := run(0, "list", "--limit", "1"); !strings.Contains(got.out, "there are more") {
		t.Errorf("%s", got.out)
	}
	for _, c := range [][2]string{
		{"popmap", "# a map\nerin: mail1.example.org:143\nfrank:mail-west:993\ngrace: unknown\nnonsense\n"},
		{"passwd", "erin:{PLAIN}x:::::: proxy=y host=mail1.example.org nopassword=y\nfrank:{PLAIN}x::::::host=mail-west\ngrace:x:::::: \nheidi\n"},
	} {
		format := map[string]string{"popmap": "perdition", "passwd": "passwd"}[c[0]]
		got := run(1, "import", write(t, c[0], c[1]), "--format", format, "--host", "mail1.example.org=east", "--host", "mail-west=west")
		if !strings.Contains(got.out, "2 refused") || r.CLI("HGET", "imapgate:user:erin@example.org", "backend") != "east" || r.CLI("HGET", "imapgate:user:frank@example.org", "backend") != "west" {
			t.Errorf("%s: %s", format, got.out)
		}
		r.CLI("DEL", "imapgate:user:erin@example.org", "imapgate:user:frank@example.org")
	}
	run(exitUsage, "import", csv, "--format", "xml")
	run(1, "import", "/nonexistent")
}

func TestALongListOfRoutesIsComplete(t *testing.T) {
	t.Parallel()
	file, r := routeConfig(t)
	const n = 2345
	var commands strings.Builder
	for i := range n {
		fmt.Fprintf(&commands, "redis.call('HSET','imapgate:user:u%d@example.org','backend','east','user','u%d@example.org') ", i, i)
	}
	for _, part := range splitCommands(commands.String(), 300) {
		r.CLI("EVAL", part, "0")
	}
	got := imapgate(t, "", "route", "--config", file, "export")
	seen := make(map[string]bool)
	for line := range strings.Lines(got.out) {
		seen[line] = true
	}
	if got.status != 0 || len(seen) != n+1 {
		t.Errorf("%d lines, %s", len(seen), got.err)
	}
}

// splitCommands splits a script into parts of so many commands.
func splitCommands(script string, n int) (parts []string) {
	all := strings.SplitAfter(script, ") ")
	for len(all) > 0 {
		parts = append(parts, strings.Join(all[:min(n, len(all))], ""))
		all = all[min(n, len(all)):]
	}
	return parts
}
