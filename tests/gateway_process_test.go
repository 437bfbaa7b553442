package tests

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// gatewayProcess is a gateway as operators run it: a process with a configuration file.
type gatewayProcess struct {
	// Set once.
	process   *testbed.Process
	ca        *testbed.CA
	dir       string            // folder of its files
	path      string            // of the program
	conf      string            // text of the configuration file
	addresses map[string]string // listener name to address; "admin" too
}

// buildCommand builds the program once for all tests and returns its path. TestMain
// removes it.
var buildCommand = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "imapgate")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "imapgate")
	if out, err := exec.Command("go", "build", "-o", path, "imapgate/cmd/imapgate").CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("build the command: %w\n%s", err, out)
	}
	buildDir.Store(&dir)
	return path, nil
})

// buildDir is the folder of the program, nil until it is built.
var buildDir atomic.Pointer[string]

// startProcess runs the program with a configuration file that ends with these sections.
// The first section may begin with more keys of the block tls.
func startProcess(t testing.TB, ca *testbed.CA, sections ...string) *gatewayProcess {
	t.Helper()
	return startProcessUnder(t, nil, ca, sections...)
}

// startProcessUnder is startProcess under a wrapper command such as prlimit.
func startProcessUnder(t testing.TB, wrapper []string, ca *testbed.CA, sections ...string) *gatewayProcess {
	t.Helper()
	b := &gatewayProcess{ca: ca, dir: t.TempDir(), addresses: map[string]string{}}
	path, err := buildCommand()
	if err != nil {
		t.Fatal(err)
	}
	b.path = path
	cert, key := ca.Issue(t, "localhost", "127.0.0.1")
	conf := fmt.Sprintf(`listeners:
  - {name: implicit, address: "127.0.0.1:0", tls: implicit}
  - {name: starttls, address: "127.0.0.1:0", tls: starttls}
admin: {address: "127.0.0.1:0", socket: %q}
tls:
  certificates:
    - {cert: %s, key: %s}
%s
`, b.socket(), cert, key, strings.Join(sections, "\n"))
	if !strings.Contains(conf, "\naudit:") {
		conf += "audit: {path: " + b.dir + "/audit}\n"
	}
	b.conf = conf
	file := filepath.Join(b.dir, "imapgate.yaml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "check", "--config", file).CombinedOutput(); err != nil {
		t.Fatalf("check: %v\n%s\n%s", err, out, conf)
	}
	args := append(slices.Clone(wrapper), path, "serve", "--allow-root", "--config", file)
	if b.process, err = testbed.Start(t, args[0], args[1:]...); err != nil {
		t.Fatal(err)
	}
	if err := b.process.WaitUntil("listen", b.isListening); err != nil {
		t.Fatal(err)
	}
	return b
}

// isListening reads the addresses from the log and reports whether all are there.
func (b *gatewayProcess) isListening() bool {
	for line := range strings.Lines(b.process.Output()) {
		var entry struct{ Msg, Listener, Address string }
		if json.Unmarshal([]byte(line), &entry) == nil && entry.Msg == "listening" && entry.Address != "" {
			b.addresses[entry.Listener] = entry.Address
		}
	}
	return len(b.addresses) == 3
}

// writeOperatorConfig writes a configuration with the actual admin address, for commands
// that connect to the running gateway.
func (b *gatewayProcess) writeOperatorConfig(t testing.TB) string {
	t.Helper()
	file := filepath.Join(b.dir, "operator.yaml")
	conf := strings.Replace(b.conf, `admin: {address: "127.0.0.1:0"`, fmt.Sprintf("admin: {address: %q", b.addresses["admin"]), 1)
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// socket returns the path of the admin socket.
func (b *gatewayProcess) socket() string { return filepath.Join(b.dir, "admin.sock") }

// operate runs a command of the program at the admin socket, and returns what it prints and its
// exit status.
func (b *gatewayProcess) operate(t testing.TB, args ...string) (out string, status int) {
	t.Helper()
	cmd := exec.Command(b.path, append(args, "--server", "unix://"+b.socket())...)
	text, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// runCommand runs a command of the program against the running gateway and returns its
// output.
func (b *gatewayProcess) runCommand(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(b.path, append(args, "--config", b.writeOperatorConfig(t))...).CombinedOutput()
	if err != nil {
		t.Fatalf("imapgate %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (b *gatewayProcess) endpoint(listener string) endpoint {
	return endpoint{
		address: b.addresses[listener], tls: b.ca.ClientTLS("localhost"), caFile: b.ca.File, starttls: listener == "starttls",
	}
}

// scrapeMetrics returns all metrics.
func (b *gatewayProcess) scrapeMetrics(t testing.TB) string {
	t.Helper()
	return scrapeMetrics(t, b.addresses["admin"])
}

// scrapeMetrics returns all metrics of the gateway with this admin address.
func scrapeMetrics(t testing.TB, admin string) string {
	t.Helper()
	r, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close() // read completely
	text, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s, %v", r.Status, err)
	}
	return string(text)
}

// sumMetric returns the sum of a metric over its labels, or 0 if it does not exist.
func (b *gatewayProcess) sumMetric(t testing.TB, name string) float64 {
	t.Helper()
	return sumMetric(t, b.addresses["admin"], name)
}

// sumMetric returns the sum of the series that begin with this name or name and labels.
func sumMetric(t testing.TB, admin, series string) (sum float64) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(series)+`(?:\{.*\})? (\S+)$`).FindAllStringSubmatch(scrapeMetrics(t, admin), -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// eastBackendConf returns the section of the backend "east" with implicit TLS.
func eastBackendConf(ca *testbed.CA, address string) string {
	return fmt.Sprintf("backends:\n  east: {address: %q, server_name: %s, ca: %s}", address, testbed.DovecotName, ca.File)
}

func TestCommandServesClientsAndShutsDownCleanly(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password})
	redis := testbed.StartRedis(t)
	redis.CLI("HSET", "imapgate:user:alice@example.org", "backend", "east")
	b := startProcess(t, backend.CA, eastBackendConf(backend.CA, backend.TLS),
		fmt.Sprintf("redis: {addresses: [%q]}", redis.Address), "auth: {default_domain: example.org}", "limits: {drain_timeout: 20s}")
	for _, listener := range []string{"implicit", "starttls"} {
		client := mustDial(t, b.endpoint(listener), "")
		for _, step := range [][2]string{
			{"LOGIN Alice " + password, " OK [CAPABILITY IMAP4rev1 "},
			{"SELECT INBOX", " OK [READ-WRITE] "},
			{"LOGOUT", "* BYE "},
		} {
			if got, err := client.Do(step[0]); err != nil || !strings.Contains(formatResponses(got), step[1]) {
				t.Fatalf("%s: %v, %v", step[0], got, err)
			}
		}
		_ = client.Close() // as every client does after LOGOUT
	}
	preauthClient, staying := mustDial(t, b.endpoint("implicit"), ""), mustDial(t, b.endpoint("implicit"), "")
	if got, err := staying.Do("LOGIN alice " + password); err != nil || !strings.Contains(formatResponses(got), " OK ") {
		t.Fatal(got, err)
	}
	testkit.Eventually(t, "the metrics to show one session", func() bool {
		return b.sumMetric(t, "imapgate_sessions") == 1
	})

	if err := b.process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r, err := preauthClient.Read(); err != nil || !strings.HasPrefix(r.Text, "* BYE [UNAVAILABLE] ") {
		t.Errorf("a client before its login got %v, %v", r, err)
	}
	if got, err := staying.Do("NOOP"); err != nil || !strings.Contains(formatResponses(got), " OK ") {
		t.Errorf("a session got %v, %v while the gateway drains", got, err)
	}
	if got, err := staying.Do("LOGOUT"); err != nil || !strings.Contains(formatResponses(got), "* BYE ") {
		t.Errorf("a session got %v, %v while the gateway drains", got, err)
	}
	_ = staying.Close()
	select {
	case <-b.process.Done():
		if err := b.process.Err(); err != nil {
			t.Errorf("the command ended with %v", err)
		}
	case <-time.After(Timeout):
		t.Error("the command does not exit after its last session")
	}
}
