package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// validConfig is a configuration with every kind of file.
func validConfig(t testing.TB) (config string, files map[string]string) {
	t.Helper()
	cert, key := certificate(t)
	users := write(t, "users", "alice@example.org:{PLAIN}pw\n")
	config = write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0"}]
tls: {certificates: [{cert: %[1]q, key: %[2]q}]}
redis: {addresses: ["127.0.0.1:1"], tls: true, ca: %[1]q}
auth: {methods: [file], file: {path: %[3]q}}
backends: {east: {address: "127.0.0.1:993", ca: %[1]q}}
`, cert, key, users))
	return config, map[string]string{"certificate": cert, "key": key, "passwd-file": users}
}

func TestAValidConfigurationPasses(t *testing.T) {
	file, _ := validConfig(t)
	if got := imapgate(t, "", "check", "--config", file); got.status != 0 || got.out != file+" is valid\n" || got.err != "" {
		t.Errorf("%+v", got)
	}
	var output struct {
		Valid    bool
		Problems []problem
	}
	got := imapgate(t, "", "check", "--json", "-c", file)
	if json.Unmarshal([]byte(got.out), &output) != nil || !output.Valid || output.Problems == nil {
		t.Errorf("%+v", got)
	}
}

func TestEveryProblemIsPrintedWithItsPosition(t *testing.T) {
	file := write(t, "bad.yaml", "listeners:\n  - {address: nowhere, tls: maybe}\nbackends: {east: {}}\nlimits: {drain_timeout: soon}\n")
	got := imapgate(t, "", "check", "--config", file)
	if got.status != 1 || got.out != "" {
		t.Errorf("%+v", got)
	}
	for _, want := range []string{file + ":2:", "listeners[0].address", "listeners[0].tls", "backends.east.address", "limits.drain_timeout"} {
		if !strings.Contains(got.err, want) {
			t.Errorf("no %s in:\n%s", want, got.err)
		}
	}
	var output struct{ Problems []problem }
	got = imapgate(t, "", "check", "--json", "--config", file)
	if err := json.Unmarshal([]byte(got.out), &output); err != nil || got.status != 1 || len(output.Problems) < 4 || output.Problems[0].Line == 0 {
		t.Errorf("%+v: %v", got, err)
	}
}

func TestBadFilesAreFoundTogether(t *testing.T) {
	file, files := validConfig(t)
	for name, path := range files {
		if name == "key" {
			continue
		}
		if err := os.WriteFile(path, []byte("not what it should be\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := imapgate(t, "", "check", "--config", file)
	if got.status != 1 {
		t.Errorf("%+v", got)
	}
	for _, want := range []string{":3:29: tls.certificates[0].cert: ", ":4:52: redis.ca: ", ":5:38: auth.file.path: ", ":6:49: backends.east.ca: "} {
		if !strings.Contains(got.err, file+want) {
			t.Errorf("no %q in:\n%s", want, got.err)
		}
	}
}

func TestMasterLoginNeedsAVerifyingMethod(t *testing.T) {
	secret := write(t, "master", "m\n")
	file := write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
auth: {methods: [passthrough]}
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:143", tls: none, login: master, master: {user: m, password_file: %q}}}
`, secret))
	if got := imapgate(t, "", "check", "--config", file); got.status != 1 || !strings.Contains(got.err, "backends.east.login") {
		t.Errorf("%+v", got)
	}
}

func TestConflictingSettingsAreWarnedOf(t *testing.T) {
	users, secret := write(t, "users", "alice:{PLAIN}x\n"), write(t, "scram", "0123456789abcdef\n")
	config := func(mechanisms, login string) string {
		return write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
auth: {methods: [file], file: {path: %q}, mechanisms: [%s], scram_secret_file: %q}
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:143", tls: none, login: %s, master: {user: m, password_file: %[3]q}}}
`, users, mechanisms, secret, login))
	}
	const warning = ":5:12: backends.east: login: passthrough does not work for clients that log in with SCRAM-SHA-256, which"
	file := config("SCRAM-SHA-256, PLAIN", "passthrough")
	if got := imapgate(t, "", "check", "--config", file); got.status != 0 || !strings.HasPrefix(got.err, "warning: "+file+warning) {
		t.Errorf("%+v", got)
	}
	var output struct{ Warnings []string }
	got := imapgate(t, "", "check", "--json", "--config", config("SCRAM-SHA-256", "passthrough"))
	if json.Unmarshal([]byte(got.out), &output) != nil || len(output.Warnings) != 1 {
		t.Errorf("%+v", got)
	}
	for _, fine := range []string{config("SCRAM-SHA-256", "master"), config("PLAIN", "passthrough")} {
		if got := imapgate(t, "", "check", "--config", fine); got.status != 0 || got.err != "" {
			t.Errorf("%+v", got)
		}
	}
}

// checkWarnings returns the warnings of check for a valid configuration.
func checkWarnings(t *testing.T, auth, backend string) string {
	t.Helper()
	file := write(t, "imapgate.yaml", fmt.Sprintf(`
listeners: [{address: "127.0.0.1:0", tls: none}]
auth: {%s}
routing: {source: static, static: {default: east}}
backends: {east: {address: "127.0.0.1:143", tls: none, %s}}
`, auth, backend))
	got := imapgate(t, "", "check", "--config", file)
	if got.status != 0 {
		t.Errorf("%+v", got)
	}
	return strings.TrimPrefix(got.err, "warning: "+file)
}

func TestModeReuseWithoutEffectIsAWarning(t *testing.T) {
	users := write(t, "users", "alice:{PLAIN}x\n")
	const tokens = "mechanisms: [OAUTHBEARER, PLAIN]"
	file := fmt.Sprintf("file: {path: %q}", users)
	for _, c := range []struct{ auth, backend, want string }{
		{"methods: [passthrough]", "mode: reuse", "or passwords that the gateway can verify: no connection will be reused for clients with passwords\n"},
		{"methods: [passthrough], " + tokens, "mode: reuse", "or passwords and tokens that the gateway can verify"},
		{"methods: [file, passthrough], " + file + ", " + tokens, "mode: reuse", "needs tokens that the gateway can verify"},
		{"methods: [passthrough], mechanisms: [XOAUTH2]", "mode: reuse, login: oauth", "needs tokens that the gateway can verify"},
		{"methods: [passthrough], " + tokens, "mode: reuse, mux: {credential_cache: true}", "needs tokens that the gateway can verify"},
		{"methods: [passthrough]", "mode: reuse, mux: {credential_cache: true}", ""},
		{"methods: [file], " + file, "mode: reuse", ""},
		{"methods: [passthrough], " + tokens, "mode: splice", ""},
	} {
		got := checkWarnings(t, c.auth, c.backend)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) || c.want != "" && !strings.HasPrefix(got, ":5:12: backends.east: mode reuse needs") {
			t.Errorf("%s, %s: %q, want %q", c.auth, c.backend, got, c.want)
		}
	}
}

func TestAPasswordSentInTheClearIsAWarning(t *testing.T) {
	for url, clear := range map[string]bool{
		"http://auth.internal/auth": true, "http://192.0.2.7:9000/auth": true, "http://[2001:db8::1]/": true, "http://127.example/": true,
		"https://auth.internal/auth": false, "http://127.0.0.1:9000/auth": false, "http://[::1]:9000/auth": false, "http://localhost/auth": false,
	} {
		got := checkWarnings(t, fmt.Sprintf("methods: [http], http: {urls: [https://auth.internal/auth, %q]}", url), "mode: splice")
		if strings.Contains(got, "auth.http.urls[1]: http to ") != clear || !clear && got != "" {
			t.Errorf("%s: %q", url, got)
		}
	}
	if got := checkWarnings(t, `methods: [passthrough], http: {urls: ["http://auth.internal/auth"]}`, "mode: splice"); got != "" {
		t.Errorf("an unused server: %q", got)
	}
}

func TestAMissingConfigurationIsAProblem(t *testing.T) {
	got := imapgate(t, "", "check", "--config", filepath.Join(t.TempDir(), "none.yaml"))
	if got.status != 1 || !strings.Contains(got.err, "no such file or directory: name the file with -c FILE") {
		t.Errorf("%+v", got)
	}
}
