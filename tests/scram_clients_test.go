package tests

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// startProofGateway starts a gateway that logs in as master at a Dovecot. auth is the content
// of the block auth. more follows the block tls, or adds keys to it.
func startProofGateway(t *testing.T, auth, more string) (*gatewayProcess, *testbed.CA) {
	t.Helper()
	ca := testbed.NewCA(t)
	d := testbed.StartDovecot(t, testbed.DovecotConfig{CA: ca, Password: "another one", Master: master, MasterPassword: masterPassword})
	secret := writeSecretFile(t, masterPassword)
	b := startProcess(t, ca, more, fmt.Sprintf(`backends:
  east:
    address: %q
    server_name: %s
    ca: %s
    login: master
    master: {user: %s, password_file: %s}
auth: {%s}
routing: {source: static, static: {default: east}}`, d.TLS, testbed.DovecotName, ca.File, master, secret, auth))
	return b, ca
}

func writeSecretFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The hash comes from Dovecot's own tool and the client uses libsasl2, two independent
// implementations.
func TestMbsyncLogsInBySCRAMWithADoveadmHash(t *testing.T) {
	t.Parallel()
	mbsync := testbed.FindProgram(t, "mbsync", "isync")
	if found, _ := filepath.Glob("/usr/lib/*/sasl2/libscram.so*"); len(found) == 0 {
		t.Skip("libsasl2 has no SCRAM here: libsasl2-modules")
	}
	stored := hashForSCRAM(t, password)
	passwdFile := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(passwdFile, []byte("alice@example.org:"+stored), 0o600); err != nil {
		t.Fatal(err)
	}
	b, _ := startProofGateway(t, fmt.Sprintf("methods: [file], file: {path: %s}, mechanisms: [SCRAM-SHA-256-PLUS, SCRAM-SHA-256], scram_secret_file: %s",
		passwdFile, writeSecretFile(t, "a secret of all gateways")), "")
	e := b.endpoint("implicit")
	if out, err := runMbsyncSCRAM(t, mbsync, e, password); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	testkit.Eventually(t, "a login by SCRAM to be in the audit log", func() bool {
		audit, err := os.ReadFile(filepath.Join(b.dir, "audit"))
		return err == nil && bytes.Contains(audit, []byte(`"mechanism":"AUTH=SCRAM-SHA-256"`))
	})
	if out, err := runMbsyncSCRAM(t, mbsync, e, "a guess"); err == nil {
		t.Errorf("a wrong password is as good:\n%s", out)
	}
}

// hashForSCRAM returns the line that doveadm makes of a password for SCRAM.
func hashForSCRAM(t *testing.T, password string) string {
	t.Helper()
	stored, err := testbed.Command(t, "doveadm", "dovecot-core", "pw", "-s", "SCRAM-SHA-256", "-p", password).Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(stored)
}

// runMbsyncSCRAM makes mbsync log in by SCRAM-SHA-256 and pull.
func runMbsyncSCRAM(t *testing.T, mbsync string, e endpoint, password string) ([]byte, error) {
	t.Helper()
	return exec.Command(mbsync, "-c", mbsyncrc(t, e, mbsyncAccount{"alice@example.org", password, "SCRAM-SHA-256"}), "all").CombinedOutput()
}

// curl authenticates by its certificate alone (EXTERNAL).
func TestCurlLogsInWithACertificate(t *testing.T) {
	t.Parallel()
	curl := testbed.FindProgram(t, "curl", "curl")
	passwdFile, clients := filepath.Join(t.TempDir(), "passwd"), testbed.NewCA(t)
	if err := os.WriteFile(passwdFile, []byte("alice@example.org:{PLAIN}x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, ca := startProofGateway(t, fmt.Sprintf("methods: [file], file: {path: %s}, default_domain: example.org, external: {san: dns}", passwdFile), "  client_ca: "+clients.File)
	_, port := splitAddress(t, b.endpoint("implicit").address)
	fetch := func(args ...string) ([]byte, error) {
		args = append(args, "--silent", "--show-error", "--cacert", ca.File, "--user", ":", "--login-options", "AUTH=EXTERNAL",
			"imaps://localhost:"+port, "--request", "STATUS INBOX (MESSAGES)")
		return exec.Command(curl, args...).CombinedOutput()
	}
	cert, key := clients.Issue(t, "alice")
	if out, err := fetch("--cert", cert, "--key", key); err != nil || !bytes.Contains(out, []byte("* STATUS INBOX (MESSAGES 0)")) {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := fetch(); err == nil {
		t.Errorf("without a certificate as well:\n%s", out)
	}
	two, twoKey := clients.Issue(t, "alice", "bob")
	if out, err := fetch("--cert", two, "--key", twoKey); err == nil {
		t.Errorf("with two names as well:\n%s", out)
	}
	unsigned, unsignedKey := ca.Issue(t, "alice")
	if out, err := fetch("--cert", unsigned, "--key", unsignedKey); err == nil {
		t.Errorf("with a certificate of another authority as well:\n%s", out)
	}
}
