package tests

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// SCRAM-SHA-256-PLUS by GNU SASL and GnuTLS against a hash made by doveadm. The client
// binds by tls-exporter (RFC 9266) in TLS 1.3. In TLS 1.2 it supports only tls-unique,
// which is obsolete and must be refused.

const tls12 = "NORMAL:-VERS-TLS1.3"

// startBindingGateway starts a gateway that offers only SCRAM, with a hash of alice's
// password.
func startBindingGateway(t *testing.T) (*gatewayProcess, *testbed.CA) {
	t.Helper()
	passwdFile := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(passwdFile, []byte("alice@example.org:"+hashForSCRAM(t, password)), 0o600); err != nil {
		t.Fatal(err)
	}
	return startProofGateway(t, fmt.Sprintf("methods: [file], file: {path: %s}, mechanisms: [SCRAM-SHA-256-PLUS, SCRAM-SHA-256], scram_secret_file: %s",
		passwdFile, writeSecretFile(t, "a secret of all gateways")), "")
}

// runGsasl logs alice in after STARTTLS, and out again.
func runGsasl(t *testing.T, ca *testbed.CA, address, mechanism, password string, more ...string) (string, error) {
	t.Helper()
	_, port := splitAddress(t, address)
	args := append(more, "--imap", "--starttls", "--verbose", "--x509-ca-file="+ca.File, "--connect=localhost:"+port,
		"--mechanism="+mechanism, "--authentication-id=alice@example.org", "--password="+password)
	out, err := exec.CommandContext(t.Context(), testbed.FindProgram(t, "gsasl", "gsasl"), args...).CombinedOutput()
	return string(out), err
}

func TestGsaslChannelBindingIsAccepted(t *testing.T) {
	t.Parallel()
	b, ca := startBindingGateway(t)
	address := b.endpoint("starttls").address
	const bound, unbound = "SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"
	for _, c := range []struct {
		name, mechanism, password string
		more                      []string
		right                     bool
	}{
		{"bound", bound, password, nil, true},
		{"a guess", bound, "a guess", nil, false},
		{"tls-unique", bound, password, []string{"--priority=" + tls12}, false},
		{"able to bind, but without a binding", unbound, password, nil, false}, // as if an attacker had removed PLUS from the list
		{"unable to bind", unbound, password, []string{"--no-cb"}, true},
	} {
		out, err := runGsasl(t, ca, address, c.mechanism, c.password, c.more...)
		if trusted := strings.Contains(out, "server trusted"); (err == nil) != c.right || trusted != c.right {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
	audit, err := os.ReadFile(filepath.Join(b.dir, "audit"))
	if err != nil || bytes.Count(audit, []byte(`"event":"login_accepted"`)) != 2 || !bytes.Contains(audit, []byte(`"mechanism":"AUTH=SCRAM-SHA-256-PLUS","method":"file"`)) {
		t.Errorf("unexpected logins: %v\n%s", err, audit)
	}
}

// An intermediary with a certificate that the client trusts terminates the client's TLS
// and opens another TLS connection to the gateway. It can forward only proofs without a
// channel binding.
func TestIntermediaryCannotForwardAChannelBoundProof(t *testing.T) {
	t.Parallel()
	b, ca := startBindingGateway(t)
	middle := startInterceptor(t, ca, b.endpoint("implicit"))
	if out, err := runGsasl(t, ca, middle, "SCRAM-SHA-256", password, "--no-cb"); err != nil {
		t.Fatalf("a proof without a binding must pass, or this test shows nothing: %v\n%s", err, out)
	}
	if out, err := runGsasl(t, ca, middle, "SCRAM-SHA-256-PLUS", password); err == nil || !strings.Contains(out, "AUTHENTICATIONFAILED") {
		t.Errorf("%v\n%s", err, out)
	}
}

// startInterceptor starts an intermediary with a certificate for the gateway's name.
func startInterceptor(t *testing.T, ca *testbed.CA, target endpoint) (address string) {
	t.Helper()
	pair := testkit.Must(tls.LoadX509KeyPair(ca.Issue(t, "localhost")))(t)
	conf := &tls.Config{Certificates: []tls.Certificate{pair}}
	return testkit.StartIMAP(t, func(c *testkit.Conn) { intercept(c, conf, target) }).Addr()
}

// intercept starts TLS with the client and relays to the gateway, until either side closes.
func intercept(client *testkit.Conn, conf *tls.Config, target endpoint) {
	_ = client.Send("* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready") // the next read has the error
	_, command, err := client.ReadCommand()
	if err != nil || command != "STARTTLS" {
		return
	}
	_ = client.Send(". OK begin")
	if client.StartTLS(conf) != nil {
		return
	}
	gateway, err := tls.Dial("tcp", target.address, target.tls)
	if err != nil {
		return
	}
	defer gateway.Close()
	responses := bufio.NewReader(gateway)
	if _, err = responses.ReadString('\n'); err != nil { // the client already has a greeting
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(gateway, client)
		_ = gateway.Close()
	})
	_, _ = io.Copy(client, responses)
	_ = client.Close()
	up.Wait()
}
