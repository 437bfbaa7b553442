package tests

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"imapgate/internal/testbed"
)

// SCRAM-SHA-256-PLUS as GNU SASL and GnuTLS speak it, to what doveadm stored. The
// client binds by tls-exporter (RFC 9266) in TLS 1.3. In TLS 1.2 it knows tls-unique
// alone, which nobody should take any more.

const tls12 = "NORMAL:-VERS-TLS1.3"

// startBindingGateway stores alice's password for proofs, and offers nothing else.
func startBindingGateway(t *testing.T) (*gatewayProcess, *testbed.CA) {
	t.Helper()
	people := filepath.Join(t.TempDir(), "people")
	if err := os.WriteFile(people, []byte("alice@example.org:"+hashForSCRAM(t, password)), 0o600); err != nil {
		t.Fatal(err)
	}
	return startProofGateway(t, fmt.Sprintf("methods: [file], file: {path: %s}, mechanisms: [SCRAM-SHA-256-PLUS, SCRAM-SHA-256], scram_secret_file: %s",
		people, writeSecretFile(t, "a secret of all gateways")), "")
}

// runGsasl logs alice in behind STARTTLS, and out again.
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
		{"told of a binding and using none", unbound, password, nil, false}, // as if somebody had taken PLUS off the list
		{"unable to bind", unbound, password, []string{"--no-cb"}, true},
	} {
		out, err := runGsasl(t, ca, address, c.mechanism, c.password, c.more...)
		if trusted := strings.Contains(out, "server trusted"); (err == nil) != c.right || trusted != c.right {
			t.Errorf("%s: %v\n%s", c.name, err, out)
		}
	}
	audit, err := os.ReadFile(filepath.Join(b.dir, "audit"))
	if err != nil || bytes.Count(audit, []byte(`"event":"login_accepted"`)) != 2 || !bytes.Contains(audit, []byte(`"mechanism":"AUTH=SCRAM-SHA-256-PLUS","method":"file"`)) {
		t.Errorf("it has logged in otherwise: %v\n%s", err, audit)
	}
}

// Who ends the client's TLS with a certificate it believes, and goes on to the
// gateway in TLS of his own, can pass a proof on only if it is bound to nothing.
func TestIntermediaryCannotForwardAChannelBoundProof(t *testing.T) {
	t.Parallel()
	b, ca := startBindingGateway(t)
	middle := startInterceptor(t, ca, b.endpoint("implicit"))
	if out, err := runGsasl(t, ca, middle, "SCRAM-SHA-256", password, "--no-cb"); err != nil {
		t.Fatalf("what is bound to nothing goes through, or this proves nothing: %v\n%s", err, out)
	}
	if out, err := runGsasl(t, ca, middle, "SCRAM-SHA-256-PLUS", password); err == nil || !strings.Contains(out, "AUTHENTICATIONFAILED") {
		t.Errorf("%v\n%s", err, out)
	}
}

// tlsInterceptor is somebody who reads along, with a certificate of the same name.
type tlsInterceptor struct {
	// Set once.
	cert     *tls.Config
	target   endpoint
	listener net.Listener
	wg       sync.WaitGroup
}

func startInterceptor(t *testing.T, ca *testbed.CA, target endpoint) (address string) {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(ca.Issue(t, "localhost"))
	if err != nil {
		t.Fatal(err)
	}
	door, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &tlsInterceptor{cert: &tls.Config{Certificates: []tls.Certificate{pair}}, target: target, listener: door}
	m.wg.Go(m.accept)
	t.Cleanup(func() {
		_ = door.Close()
		m.wg.Wait()
	})
	return door.Addr().String()
}

// accept ends when the door is closed.
func (m *tlsInterceptor) accept() {
	for {
		nc, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.wg.Go(func() { m.relay(nc) })
	}
}

// relay begins TLS with the client and has the rest said by the gateway. It ends
// with either of them.
func (m *tlsInterceptor) relay(nc net.Conn) {
	defer nc.Close()
	_, _ = io.WriteString(nc, "* OK [CAPABILITY IMAP4rev1 STARTTLS LOGINDISABLED] ready\r\n") // what fails ends below
	line, err := bufio.NewReader(nc).ReadString('\n')
	if err != nil || !strings.Contains(line, "STARTTLS") {
		return
	}
	_, _ = io.WriteString(nc, ". OK begin\r\n")
	client := tls.Server(nc, m.cert)
	gateway, err := tls.Dial("tcp", m.target.address, m.target.tls)
	if err != nil {
		return
	}
	defer gateway.Close()
	said := bufio.NewReader(gateway)
	if _, err = said.ReadString('\n'); err != nil { // the client was greeted
		return
	}
	var up sync.WaitGroup
	up.Go(func() {
		_, _ = io.Copy(gateway, client)
		_ = gateway.Close()
	})
	_, _ = io.Copy(client, said)
	_ = nc.Close()
	up.Wait()
}
