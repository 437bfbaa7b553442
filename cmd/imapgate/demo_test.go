package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"imapgate/internal/testkit"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/redis/go-redis/v9"
)

// demoProcess is a demo with the addresses of its introduction.
type demoProcess struct {
	outputBuffer
	stdin                          io.Writer // of the person at the console
	imaps, imap, admin, redis, dir string
}

// start runs a demo on free ports until the test ends.
func (d *demoProcess) start(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	in, keys := io.Pipe()
	d.stdin = keys
	ended := make(chan error, 1)
	go func() { ended <- runDemo(ctx, demoPorts{}, console{in, d, d}) }()
	t.Cleanup(func() {
		cancel()
		keys.Close()
		if err := <-ended; err != nil {
			t.Errorf("demo: %v", err)
		}
	})
	d.awaitMatch(t, "Ctrl-C ends the demo")
	d.imaps = d.awaitMatch(t, `IMAP over TLS +(\S+)`)[1]
	d.imap = d.awaitMatch(t, `IMAP, STARTTLS +(\S+)`)[1]
	d.admin = d.awaitMatch(t, `admin +(http://[^/]+)`)[1]
	d.redis = d.awaitMatch(t, `Redis +(127\S+)`)[1]
	d.dir = d.awaitMatch(t, `files +(\S+) `)[1]
}

// loadRoots returns a TLS configuration that trusts a self-signed certificate.
func loadRoots(t testing.TB, file string) *tls.Config {
	t.Helper()
	pem, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		t.Fatal("no certificate in " + file)
	}
	return &tls.Config{RootCAs: roots, ServerName: loopback}
}

// subjects logs in and returns the subjects of the messages in INBOX.
func subjects(t testing.TB, c *imapclient.Client, user string) []string {
	t.Helper()
	if err := c.Login(user, "demo").Wait(); err != nil {
		t.Fatalf("log in as %s: %v", user, err)
	}
	return inbox(t, c)
}

// inbox returns the subjects of an authenticated client's INBOX, and logs out.
func inbox(t testing.TB, c *imapclient.Client) []string {
	t.Helper()
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	mail, err := c.Fetch(imap.SeqSet{{Start: 1, Stop: 0}}, &imap.FetchOptions{Envelope: true}).Collect()
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, m := range mail {
		all = append(all, m.Envelope.Subject)
	}
	if err := c.Logout().Wait(); err != nil {
		t.Fatal(err)
	}
	return all
}

func (d *demoProcess) dial(t testing.TB) *imapclient.Client {
	t.Helper()
	c, err := imapclient.DialTLS(d.imaps, &imapclient.Options{TLSConfig: loadRoots(t, d.dir+"/cert.pem")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (d *demoProcess) read(t testing.TB, user string) string {
	t.Helper()
	c := d.dial(t)
	defer c.Close()
	return strings.Join(subjects(t, c, user), "; ")
}

func TestDemoFollowsARouteChange(t *testing.T) {
	var d demoProcess
	d.start(t)
	for user, backend := range map[string]string{"alice@example.org": "east", "bob": "west", "carol": "east"} {
		if got := d.read(t, user); !strings.Contains(got, "Hello from "+backend) {
			t.Errorf("%s reads %q", user, got)
		}
	}
	rdb := redis.NewClient(&redis.Options{Addr: d.redis})
	defer rdb.Close()
	if err := rdb.HSet(t.Context(), "imapgate:user:alice@example.org", "backend", "west").Err(); err != nil {
		t.Fatal(err)
	}
	var got string
	testkit.Eventually(t, "alice to read her mail in the west", func() bool {
		c := d.dial(t)
		defer c.Close()
		if err := c.Login("alice", "demo").Wait(); err != nil { // possibly in progress when the record changed
			got = err.Error()
			return false
		}
		got = strings.Join(inbox(t, c), "; ")
		return strings.Contains(got, "Hello from west")
	}, func() string { return "she reads " + got })
	d.awaitMatch(t, `login accepted +alice@example\.org .* at east`)
	d.awaitMatch(t, `login accepted +alice@example\.org .* at west`)
	d.awaitMatch(t, `session ended +alice@example\.org .* at west`)
}

// A line of input restarts a backend during the IDLE of the demo's own client, and
// of every other client.
func TestDemoRestartsABackendDuringIDLE(t *testing.T) {
	var d demoProcess
	d.start(t)
	mail := make(chan uint32, 16)
	c, err := imapclient.DialTLS(d.imaps, &imapclient.Options{
		TLSConfig: loadRoots(t, d.dir+"/cert.pem"),
		UnilateralDataHandler: &imapclient.UnilateralDataHandler{Mailbox: func(m *imapclient.UnilateralDataMailbox) {
			if m.NumMessages != nil {
				mail <- *m.NumMessages
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Login("bob", "demo").Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	idle, err := c.Idle()
	if err != nil {
		t.Fatal(err)
	}
	for n := uint32(4); n < 6; n++ { // the demonstration can be repeated
		if _, err := io.WriteString(d.stdin, "\n"); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "the new message to reach the client in IDLE", func() bool {
			select {
			case got := <-mail:
				return got == n
			default:
				return false
			}
		})
		d.awaitMatch(t, fmt.Sprintf(`(?s)west is stopped.*west is running again.*S: \* %d EXISTS.*C: DONE\n.*S: c OK .*Subject: Arrived while west was down.*her backend got`, n))
	}
	if err := idle.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Logout().Wait(); err != nil {
		t.Error(err)
	}
	d.awaitMatch(t, `OK 3 times; her backend got 1 new connection\.`)
	d.awaitMatch(t, `her backend got 0 new connections\.`) // the second time the connection exists
	if text := d.String(); strings.Contains(text, "the demonstration failed") {
		t.Error(text)
	}
}

func TestDemoSupportsSTARTTLS(t *testing.T) {
	var d demoProcess
	d.start(t)
	c, err := imapclient.DialStartTLS(d.imap, &imapclient.Options{TLSConfig: loadRoots(t, d.dir+"/cert.pem")})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := subjects(t, c, "bob"); len(got) != 3 {
		t.Errorf("bob reads %q", got)
	}
}

func TestDemoRouteIsExplainedThroughTheAdminAddress(t *testing.T) {
	var d demoProcess
	d.start(t)
	conf := d.dir + "/imapgate.yaml"
	got := imapgate(t, "", "route", "explain", "alice", "--config", conf)
	if got.status != 0 || !strings.Contains(got.out, "Answer of the running gateway") || !strings.Contains(got.out, "east") {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "", "route", "set", "alice", "backend=west", "--config", conf); got.status != 0 {
		t.Errorf("%+v", got)
	}
	if got := imapgate(t, "", "check", "--config", conf); got.status != 0 {
		t.Errorf("%+v", got)
	}
}

func TestDemoPrintsCommandsThatWork(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, typed, command, folder string }{
		{"/tmp/go-build1/b001/exe/imapgate", "/tmp/go-build1/b001/exe/imapgate", "go run ./cmd/imapgate", root},
		{"/home/op/.cache/go-build/ab/cd-d/imapgate", "/home/op/.cache/go-build/ab/cd-d/imapgate", "go run ./cmd/imapgate", root},
		{"/usr/bin/imapgate", "imapgate", "imapgate", ""},
		{"/opt/imapgate", "/opt/imapgate", "/opt/imapgate", ""},
		{here + "/dist/imapgate", "./dist/imapgate", here + "/dist/imapgate", ""},
		{"/opt/my mail/it's", "/opt/my mail/it's", `'/opt/my mail/it'\''s'`, ""},
	} {
		if command, folder := resolveCommand(c.path, c.typed, here); command != c.command || folder != c.folder {
			t.Errorf("%s, typed as %s: %q in %q", c.path, c.typed, command, folder)
		}
	}
	var text strings.Builder
	d := &demo{Dir: "/tmp/a $HOME"}
	if err := d.printIntroduction(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--cacert '/tmp/a $HOME/cert.pem' ", "-c '/tmp/a $HOME/imapgate.yaml'\n"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in:\n%s", want, text.String())
		}
	}
}

func TestDemoReplacesAPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", loopbackAddress(0))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	d := &demo{}
	if err := d.choosePorts(demoPorts{IMAPS: port}); err != nil {
		t.Fatal(err)
	}
	if d.Ports.IMAPS == port || d.Ports.IMAPS == 0 || d.Ports.IMAPS == d.Ports.IMAP {
		t.Errorf("%+v", d.Ports)
	}
}

func TestUIDValidityDiffersBetweenDemoBackends(t *testing.T) {
	validity := func(backend string) uint32 {
		u, err := newMailAccount("alice@example.org", backend, "demo")
		if err != nil {
			t.Fatal(err)
		}
		got, err := u.Status("INBOX", &imap.StatusOptions{UIDValidity: true})
		if err != nil {
			t.Fatal(err)
		}
		return got.UIDValidity
	}
	if east, west := validity("east"), validity("west"); east == west {
		t.Errorf("both have UIDVALIDITY %d", east)
	}
}
