package tests

import (
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// stubEnv is the environment variable that turns the test program into a stub backend. Its
// value is the paths of certificate and key, joined by a comma.
const stubEnv = "IMAPGATE_TESTS_STUB"

// startStub starts a minimal backend in this process that accepts every login, so that
// tests with thousands of sessions measure the gateway. Other tests use real backends.
func startStub(t testing.TB, conf *tls.Config) *testkit.ScriptedIMAP {
	t.Helper()
	return testkit.StartIMAP(t, minimalBackend(conf))
}

// minimalBackend returns the script of such a backend, over TLS if conf is not nil.
func minimalBackend(conf *tls.Config) func(*testkit.Conn) {
	return func(c *testkit.Conn) {
		if conf == nil || c.StartTLS(conf) == nil {
			serveMinimal(c)
		}
	}
}

// serveMinimal serves one connection until it ends.
func serveMinimal(c *testkit.Conn) {
	const capabilities = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID AUTH=PLAIN"
	if c.Send("* OK ["+capabilities+"] ready") != nil {
		return
	}
	for {
		tag, command, err := c.ReadCommand()
		if err != nil {
			return
		}
		name, _, _ := strings.Cut(command, " ")
		answer := tag + " OK done"
		switch name {
		case "AUTHENTICATE":
			answer = tag + " OK [" + capabilities + "] welcome"
		case "LOGOUT":
			answer = "* BYE so long\r\n" + answer
		}
		if c.Send(answer) != nil || name == "LOGOUT" {
			return
		}
	}
}

// stubMain runs the test program as a stub backend until it is killed.
func stubMain(files string) error {
	cert, key, _ := strings.Cut(files, ",")
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return err
	}
	s, err := testkit.ListenIMAP("127.0.0.1:0", minimalBackend(&tls.Config{Certificates: []tls.Certificate{pair}}))
	if err != nil {
		return err
	}
	fmt.Println("listening on", s.Addr())
	s.Wait()
	return nil
}

// startStubProcess starts a stub backend with TLS in a separate process, which has its own
// descriptors, and returns its address.
func startStubProcess(t testing.TB, ca *testbed.CA) string {
	t.Helper()
	cert, key := ca.Issue(t, testbed.DovecotName)
	p, err := testbed.Start(t, testbed.FindProgram(t, "env", "coreutils"), stubEnv+"="+cert+","+key, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	address := ""
	err = p.WaitUntil("print its address", func() bool {
		_, rest, listening := strings.Cut(p.Output(), "listening on ")
		line, _, complete := strings.Cut(rest, "\n")
		address = line
		return listening && complete
	})
	if err != nil {
		t.Fatal(err)
	}
	return address
}
