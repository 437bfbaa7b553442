//go:build unix

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// gatewayConfig writes the configuration of a gateway in front of an in-memory
// backend, with more appended.
func gatewayConfig(t testing.TB, more string) (config, audit string) {
	t.Helper()
	b, err := startBackend("east", "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.stop(); err != nil {
			t.Error(err)
		}
	})
	cert, key := certificate(t)
	audit = filepath.Join(t.TempDir(), "audit.log")
	return write(t, "imapgate.yaml", fmt.Sprintf(`
listeners:
  - {name: imaps, address: "127.0.0.1:0"}
  - {name: plain, address: "127.0.0.1:0", tls: none}
tls: {certificates: [{cert: %q, key: %q}]}
backends: {east: {address: %q, tls: none, forward: none}}
audit: {path: %q}
admin: {address: "127.0.0.1:0"}
%s`, cert, key, b.address(), audit, more)), audit
}

const staticEast = `
auth: {default_domain: example.org}
routing: {source: static, static: {default: east}}
limits: {drain_timeout: 10m}
`

// gatewayProcess is a gateway in its own process.
type gatewayProcess struct {
	outputBuffer
	cmd          *exec.Cmd
	plain, admin string
}

// startServe runs `imapgate serve` until the test ends.
func startServe(t testing.TB, config string) *gatewayProcess {
	t.Helper()
	cmd := exec.Command(os.Args[0], "serve", "--config", config)
	cmd.Env = append(os.Environ(), runMainVariable+"=1")
	return startProcess(t, cmd)
}

// startProcess runs cmd, which becomes `imapgate serve`, until the test ends.
func startProcess(t testing.TB, cmd *exec.Cmd) *gatewayProcess {
	t.Helper()
	s := &gatewayProcess{cmd: cmd}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.cmd.ProcessState == nil {
			_ = s.cmd.Process.Kill()
			_ = s.cmd.Wait()
		}
		if t.Failed() {
			t.Log(s.String())
		}
	})
	s.plain = s.awaitMatch(t, `"listener":"plain","address":"([^"]+)"`)[1]
	s.admin = s.awaitMatch(t, `"listener":"admin","address":"([^"]+)"`)[1]
	return s
}

func (g *gatewayProcess) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := g.cmd.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// waitExit waits for the end of the process.
func (g *gatewayProcess) waitExit(t testing.TB) int {
	t.Helper()
	killTimer := time.AfterFunc(testTimeout, func() { _ = g.cmd.Process.Kill() })
	defer killTimer.Stop()
	_ = g.cmd.Wait() // the exit status is in its state
	return g.cmd.ProcessState.ExitCode()
}

// testClient is a client that writes and reads lines.
type testClient struct {
	net.Conn
	in *bufio.Reader
}

// connect connects and reads the greeting.
func connect(t testing.TB, address string) *testClient {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	k := &testClient{c, bufio.NewReader(c)}
	k.readMatch(t, `^\* OK `)
	return k
}

// writeLine sends a line.
func (k *testClient) writeLine(t testing.TB, line string) {
	t.Helper()
	if _, err := io.WriteString(k, line+"\r\n"); err != nil {
		t.Fatal(err)
	}
}

// readMatch reads lines until one matches.
func (k *testClient) readMatch(t testing.TB, pattern string) {
	t.Helper()
	var read strings.Builder
	for re := regexp.MustCompile(pattern); ; {
		line, err := k.in.ReadString('\n')
		read.WriteString(line)
		if re.MatchString(line) {
			return
		}
		if err != nil {
			t.Fatalf("no %s in %q: %v", pattern, read.String(), err)
		}
	}
}

func TestSIGTERMDrainsAndExitsZero(t *testing.T) {
	t.Parallel()
	config, audit := gatewayConfig(t, staticEast)
	s := startServe(t, config)
	session := connect(t, s.plain)
	session.writeLine(t, "a LOGIN alice demo")
	session.readMatch(t, "^a OK ")
	unauthenticated := connect(t, s.plain)
	if got := ready(t, s.admin); got != 200 {
		t.Errorf("ready: %d", got)
	}

	s.signal(t, syscall.SIGTERM)
	unauthenticated.readMatch(t, `^\* BYE `)
	if got := ready(t, s.admin); got != 503 {
		t.Errorf("ready during the drain: %d", got)
	}
	if _, err := net.Dial("tcp", s.plain); err == nil {
		t.Error("a new client is accepted during the drain")
	}
	session.writeLine(t, "b SELECT INBOX") // a session continues
	session.readMatch(t, "^b OK ")
	session.writeLine(t, "c LOGOUT")
	session.readMatch(t, "^c OK ")
	session.Close()
	if got := s.waitExit(t); got != 0 { // long before the drain timeout
		t.Errorf("exit status %d", got)
	}
	text, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range []string{"started", "login_accepted", "session_ended", "connection_refused", "stopped"} {
		if !strings.Contains(string(text), `"event":"`+event+`"`) {
			t.Errorf("no %s in the audit log:\n%s", event, text)
		}
	}
	if strings.Contains(s.String()+string(text), "demo") {
		t.Error("the password is in the log")
	}
}

// ready returns the status of the readiness endpoint.
func ready(t testing.TB, admin string) int {
	t.Helper()
	got, err := http.Get("http://" + admin + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	got.Body.Close()
	return got.StatusCode
}

func TestServeWarnsWhenRunAsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be warned")
	}
	t.Parallel()
	config, _ := gatewayConfig(t, staticEast)
	s := startServe(t, config)
	s.awaitMatch(t, `"level":"warn".*(setcap)`)
}

func TestSecondSignalExitsImmediately(t *testing.T) {
	t.Parallel()
	config, _ := gatewayConfig(t, staticEast)
	s := startServe(t, config)
	session := connect(t, s.plain)
	session.writeLine(t, "a LOGIN alice demo")
	session.readMatch(t, "^a OK ")
	s.signal(t, syscall.SIGTERM)
	s.awaitMatch(t, `"draining"`)
	s.signal(t, syscall.SIGINT)
	if got := s.waitExit(t); got != 1 {
		t.Errorf("exit status %d", got)
	}
	s.awaitMatch(t, "second signal")
}

func TestSIGHUPReopensTheAuditLog(t *testing.T) {
	t.Parallel()
	config, audit := gatewayConfig(t, staticEast)
	s := startServe(t, config)
	s.signal(t, syscall.SIGHUP)
	s.awaitMatch(t, `reloaded; the configuration is unchanged","reread":"audit log, certificates, secrets"`)
	if err := os.Rename(audit, audit+".1"); err != nil {
		t.Fatal(err)
	}
	s.signal(t, syscall.SIGHUP)
	client := connect(t, s.plain)
	client.writeLine(t, "a LOGIN alice wrong")
	client.readMatch(t, `^a NO \[AUTHENTICATIONFAILED\]`)
	testkit.Eventually(t, "a record in the new audit log", func() bool {
		text, err := os.ReadFile(audit)
		return err == nil && strings.Contains(string(text), "login_refused")
	})
}

// A reload must not report more than it has done.
func TestSIGHUPReportsABrokenOrChangedConfiguration(t *testing.T) {
	t.Parallel()
	config, audit := gatewayConfig(t, staticEast)
	good, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	cert := regexp.MustCompile(`cert: "([^"]+)"`).FindStringSubmatch(string(good))[1]
	pair, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	s := startServe(t, config)
	records := 0
	for _, c := range []struct{ file, text, event, want, healthy string }{
		{config, "listeners: [", "config_rejected", config + ":1:", "0"},
		{config, strings.Replace(string(good), "drain_timeout: 10m", "drain_timeout: soon, no_such_key: 1", 1), "config_rejected", "(and 1 more)", "0"},
		{config, strings.Replace(string(good), "drain_timeout: 10m", "drain_timeout: 9m", 1), "config_rejected", "which needs a restart: limits.drain_timeout", "0"},
		{config, string(good), "config_reloaded", `"accepted","reread":"audit log, certificates, secrets"`, "1"},
		{cert, "no certificate", "config_rejected", "it holds no PEM certificate", "0"},
		{cert, string(pair), "config_reloaded", "accepted", "1"},
	} {
		if err := os.WriteFile(c.file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		s.signal(t, syscall.SIGHUP)
		records++
		var record string
		testkit.Eventually(t, "a record of "+c.want, func() bool {
			text, err := os.ReadFile(audit)
			found := regexp.MustCompile(`.*"event":"config_re(?:loaded|jected)".*`).FindAllString(string(text), -1)
			if err != nil || len(found) < records {
				return false
			}
			record = found[records-1]
			return true
		})
		if !strings.Contains(record, `"event":"`+c.event+`"`) || !strings.Contains(record, c.want) {
			t.Errorf("%s, want %s, %s", record, c.event, c.want)
		}
		if got := fetchPage(t, s.admin, "/metrics"); !strings.Contains(got, "imapgate_config_reload_success "+c.healthy+"\n") {
			t.Errorf("%s: the metric is not %s", c.want, c.healthy)
		}
	}
	text, err := os.ReadFile(audit)
	if n := strings.Count(string(text), `"action":"reload","by":"signal","result":"refused","detail":`); err != nil || n != 4 {
		t.Errorf("%d of 4 reloads are recorded as refused, %v", n, err)
	}
	client := connect(t, s.plain) // the previous configuration stays in use
	client.writeLine(t, "a LOGIN alice demo")
	client.readMatch(t, `^a OK `)
}

// Both gateways use the same file, as in a restart.
func TestAGatewayStartsBesideOneThatDrains(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("on Linux")
	}
	config, audit := gatewayConfig(t, staticEast)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	chained := strings.Replace(string(text), "audit: {", "audit: {chain: true, ", 1)
	if err := os.WriteFile(config, []byte(chained), 0o600); err != nil {
		t.Fatal(err)
	}
	old := startServe(t, config)
	session := connect(t, old.plain)
	session.writeLine(t, "a LOGIN alice demo")
	session.readMatch(t, "^a OK ")
	imaps := old.awaitMatch(t, `"listener":"imaps","address":"([^"]+)"`)[1]
	for _, address := range []string{imaps, old.plain, old.admin} { // as written in the file
		chained = strings.Replace(chained, `"127.0.0.1:0"`, `"`+address+`"`, 1)
	}
	if err := os.WriteFile(config, []byte(chained), 0o600); err != nil {
		t.Fatal(err)
	}

	early := startServe(t, config) // while the old gateway is not draining yet
	early.awaitMatch(t, `another process listens there too.*"listener":"plain"`)
	early.signal(t, syscall.SIGTERM)
	if got := early.waitExit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}

	old.signal(t, syscall.SIGTERM)
	old.awaitMatch(t, `"draining"`)
	testkit.Eventually(t, "the old gateway to stop listening", func() bool {
		c, err := net.Dial("tcp", old.plain)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	if got := ready(t, old.admin); got != 503 {
		t.Errorf("ready during the drain: %d", got)
	}
	next := startServe(t, config)
	old.awaitMatch(t, `admin address released`)
	if got := ready(t, next.admin); got != 200 {
		t.Errorf("ready: %d", got)
	}
	for range 20 { // none reaches the old one
		client := connect(t, next.plain)
		client.writeLine(t, "a LOGIN alice demo")
		client.readMatch(t, "^a OK ")
		client.Close()
	}
	if strings.Contains(next.String(), "listens there too") {
		t.Error("a drained listener counts as another process")
	}
	session.writeLine(t, "b SELECT INBOX")
	session.readMatch(t, "^b OK ")
	session.writeLine(t, "c LOGOUT")
	session.readMatch(t, "^c OK ")
	session.Close()
	if got := old.waitExit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}
	next.signal(t, syscall.SIGTERM)
	if got := next.waitExit(t); got != 0 {
		t.Errorf("exit status %d", got)
	}
	if got := imapgate(t, "", "audit", "verify", audit); got.status != 0 {
		t.Errorf("the chain: %s%s", got.out, got.err)
	}
	records, err := os.ReadFile(audit)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(records), `"event":"stopped"`); n != 3 {
		t.Errorf("%d of 3 processes have recorded their stop", n)
	}
}

func TestNoCoreIsDumped(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("on Linux")
	}
	config, _ := gatewayConfig(t, staticEast)
	s := startServe(t, config)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`Max core file size +0 +0 `).Match(limits) {
		t.Errorf("%s", limits)
	}
}

func TestAPortInUseIsNamed(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", loopbackAddress(0))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	config, _ := gatewayConfig(t, staticEast)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range []string{`plain, address: "127.0.0.1:0"`, `admin: {address: "127.0.0.1:0"`} {
		inUse := strings.Replace(block, "127.0.0.1:0", taken.Addr().String(), 1)
		changed := write(t, "imapgate.yaml", strings.Replace(string(text), block, inUse, 1))
		var log outputBuffer
		err := serve(t.Context(), changed, "", &log)
		if err == nil || !strings.Contains(log.String(), taken.Addr().String()) || !strings.Contains(log.String(), "in use") {
			t.Errorf("%s: %v, %s", block, err, log.String())
		}
	}
}

func TestServingEndsWithTheContext(t *testing.T) {
	t.Parallel()
	config, _ := gatewayConfig(t, staticEast)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	var log outputBuffer
	go func() { ended <- serve(ctx, config, "", &log) }()
	log.awaitMatch(t, `"listener":"admin"`)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAUserWithoutAHashInRedisReachesTheNextMethod(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	r.CLI("HSET", "imapgate:default", "backend", "east")
	// alice's hash here is of another password than the backend's "demo".
	r.CLI("HSET", "imapgate:user:alice@example.org", "backend", "east", "password", "{PLAIN}other")
	r.CLI("HSET", "imapgate:user:bob@example.org", "backend", "east")
	config, _ := gatewayConfig(t, fmt.Sprintf(`
redis: {addresses: [%q]}
auth: {methods: [redis, passthrough], default_domain: example.org}
limits: {drain_timeout: 0s}
`, r.Address))
	s := startServe(t, config)
	for user, want := range map[string]string{
		"alice demo":  `^a NO \[AUTHENTICATIONFAILED\]`, // Redis has a hash, and decides
		"bob demo":    `^a OK `,                         // a record, no hash
		"carol demo":  `^a OK `,                         // no record
		"carol wrong": `^a NO \[AUTHENTICATIONFAILED\]`, // the backend decides
	} {
		client := connect(t, s.plain)
		client.writeLine(t, "a LOGIN "+user)
		client.readMatch(t, want)
	}
}
