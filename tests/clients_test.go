package tests

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"

	"imapgate/internal/testbed"
)

// Real mail clients through the gateway.

// programTimeout bounds one run of a program.
const programTimeout = 90 * time.Second

func TestMbsyncPullsTheSameThousandMessages(t *testing.T) {
	t.Parallel()
	mbsync := testbed.FindProgram(t, "mbsync", "isync")
	const user, n = "collector", 1000
	backend := startMail(t, user)
	sent := storeNumbered(t, directEndpoint(backend), user, n)

	direct := pullWithMbsync(t, mbsync, directEndpoint(backend)(t, user), user)
	if !maps.Equal(sent, direct) {
		t.Fatalf("%d messages pulled directly are not the %d stored", len(direct), n)
	}
	for _, mode := range testedModes[:3] {
		if pulled := pullWithMbsync(t, mbsync, modeEndpoint(t, backend, mode)(t, user), user); !maps.Equal(direct, pulled) {
			t.Errorf("%d messages pulled directly and %d in mode %s are not the same", len(direct), len(pulled), mode)
		}
	}
}

// mailHash is the SHA-256 of a message.
type mailHash [sha256.Size]byte

// storeNumbered stores n messages of many sizes. It returns the hash of each in its Maildir
// form, by subject.
func storeNumbered(t *testing.T, through endpointFunc, user string, n int) map[string]mailHash {
	t.Helper()
	e := through(t, user)
	c, err := Connect(e.address, e.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // all responses were read
	hashes := map[string]mailHash{}
	// RFC 3502: one APPEND for many messages.
	var command strings.Builder
	command.WriteString("APPEND INBOX")
	var literals [][]byte
	for i := range n {
		subject := fmt.Sprint("number ", i)
		m := messageOfSize(200+i*i%40_000, subject)
		literals = append(literals, m)
		command.WriteString(" {+}")
		hashes[subject] = sha256.Sum256(bytes.ReplaceAll(m, []byte("\r\n"), []byte("\n")))
	}
	if _, err := c.Read(); err != nil { // the greeting
		t.Fatal(err)
	}
	for _, do := range []func() ([]Response, error){
		func() ([]Response, error) { return c.Do("LOGIN " + user + " " + password) },
		func() ([]Response, error) { return c.Do(command.String(), literals...) },
	} {
		got, err := do()
		if err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
			t.Fatalf("%v, %v", got, err)
		}
	}
	return hashes
}

var (
	// subjectHeader finds the subject of a message.
	subjectHeader = regexp.MustCompile(`(?m)^Subject: (.*)$`)
	// mbsyncMark is a header line with a random value that mbsync adds.
	mbsyncMark = regexp.MustCompile(`(?m)^X-TUID: .{12}\n`)
)

// pullWithMbsync copies INBOX into an empty Maildir by mbsync, and returns the hash of each
// message by subject.
func pullWithMbsync(t *testing.T, mbsync string, e endpoint, user string) map[string]mailHash {
	t.Helper()
	path := mbsyncrc(t, e, mbsyncAccount{user, password, "LOGIN"})
	runProgram(t, mbsync, "-c", path, "all")
	dir := filepath.Dir(path)

	files, err := filepath.Glob(filepath.Join(dir, "inbox", "[cn][ue][rw]", "*")) // cur and new
	if err != nil {
		t.Fatal(err)
	}
	hashes := map[string]mailHash{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		end := bytes.Index(content, []byte("\n\n")) + 1
		header, text := content[:end], content[end:]
		m := subjectHeader.FindSubmatch(header)
		if m == nil {
			t.Fatalf("%s has no subject", file)
		}
		if _, twice := hashes[string(m[1])]; twice {
			t.Errorf("%s was pulled twice", m[1])
		}
		hashes[string(m[1])] = sha256.Sum256(append(mbsyncMark.ReplaceAll(header, nil), text...))
	}
	return hashes
}

// mbsyncAccount is how mbsync logs in.
type mbsyncAccount struct{ user, password, mechanism string }

// mbsyncrc writes a configuration with which mbsync pulls INBOX into the Maildir "inbox" in
// the same folder. mbsync verifies DNS names only, so the certificate must be for
// localhost.
func mbsyncrc(t *testing.T, e endpoint, a mbsyncAccount) (path string) {
	t.Helper()
	dir := t.TempDir()
	_, port := splitAddress(t, e.address)
	conf := fmt.Sprintf(`
FSync no

IMAPAccount far
Host localhost
Port %s
User %s
Pass "%s"
SSLType IMAPS
SystemCertificates no
CertificateFile %s
AuthMechs %s

IMAPStore far
Account far

MaildirStore near
Inbox %s/inbox
Path %s/

Channel all
Far :far:
Near :near:
Patterns INBOX
Create Near
Sync Pull
SyncState *
`, port, a.user, a.password, e.caFile, a.mechanism, dir, dir)
	path = filepath.Join(dir, "mbsyncrc")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// runProgram runs a program, which must succeed.
func runProgram(t *testing.T, path string, args ...string) {
	t.Helper()
	p, err := testbed.Start(t, path, args...)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(programTimeout):
		t.Fatalf("%s did not end within %v:\n%s", path, programTimeout, p.Output())
	}
	if err := p.Err(); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, p.Output())
	}
}

func splitAddress(t *testing.T, address string) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func TestAGoProgramIdlesAndReadsNewMail(t *testing.T) {
	t.Parallel()
	backend := startMail(t, userPerMode("gopher")...)
	for _, mode := range testedModes[:3] {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			runGoIdle(t, backend, modeEndpoint(t, backend, mode), mode+".gopher")
		})
	}
}

// runGoIdle runs the test with go-imap.
func runGoIdle(t *testing.T, backend mailServer, through endpointFunc, user string) {
	e := through(t, user)
	exists := make(chan uint32, 16) // more than this test sends
	c := dialGoIMAP(t, e, &imapclient.Options{
		UnilateralDataHandler: &imapclient.UnilateralDataHandler{Mailbox: func(d *imapclient.UnilateralDataMailbox) {
			if d.NumMessages != nil {
				exists <- *d.NumMessages
			}
		}},
	})
	if err := c.Login(user, password).Wait(); err != nil {
		t.Fatal(err)
	}
	if !c.Caps().Has(imap.CapQResync) {
		t.Errorf("after the login the client does not know of QRESYNC: %v", c.Caps())
	}
	if _, err := c.Select("INBOX", nil).Wait(); err != nil {
		t.Fatal(err)
	}
	idle, err := c.Idle()
	if err != nil {
		t.Fatal(err)
	}
	deliverDirect(t, backend, user, newMessage("burrows"))
	select {
	case n := <-exists:
		if n != 1 {
			t.Errorf("%d messages, want 1", n)
		}
	case <-time.After(Timeout):
		t.Fatal("no news of the mail while idle")
	}
	if err := idle.Close(); err != nil {
		t.Fatal(err)
	}
	if err := idle.Wait(); err != nil {
		t.Fatal(err)
	}
	checkOnlyMessage(t, c, newMessage("burrows"))
	if err := c.Logout().Wait(); err != nil {
		t.Error(err)
	}
}

// checkOnlyMessage checks that the mailbox has only this message.
func checkOnlyMessage(t *testing.T, c *imapclient.Client, want []byte) {
	t.Helper()
	body := &imap.FetchItemBodySection{Peek: true}
	got, err := c.Fetch(imap.SeqSetNum(1), &imap.FetchOptions{
		UID: true, Envelope: true, BodySection: []*imap.FetchItemBodySection{body},
	}).Collect()
	if err != nil || len(got) != 1 {
		t.Fatalf("fetch: %v, %v", got, err)
	}
	if m := got[0]; m.UID != 1 || m.Envelope.Subject != "burrows" || !bytes.Equal(m.FindBodySection(body), want) {
		t.Errorf("the message is %+v %+v", m, m.Envelope)
	}
	found, err := c.UIDSearch(&imap.SearchCriteria{Text: []string{"burrows"}}, nil).Wait()
	if err != nil || !slices.Equal(found.AllUIDs(), []imap.UID{1}) {
		t.Errorf("search: %v, %v", found, err)
	}
}

// deliverDirect stores a message in a user's INBOX, directly at the backend.
func deliverDirect(t *testing.T, backend mailServer, user string, message []byte) {
	t.Helper()
	e := directEndpoint(backend)(t, user)
	c, err := Connect(e.address, e.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // its response was read
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	for _, do := range []func() ([]Response, error){
		func() ([]Response, error) { return c.Do("LOGIN " + user + " " + password) },
		func() ([]Response, error) { return c.Do("APPEND INBOX {}", message) },
	} {
		got, err := do()
		if err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
			t.Fatalf("deliver: %v, %v", got, err)
		}
	}
}

func TestANodeProgramIdlesAndReceivesNewMail(t *testing.T) {
	t.Parallel()
	node := installNodeClients(t)
	backend := startMail(t, userPerMode("flow")...)
	for _, mode := range testedModes[:3] {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			runNodeIdle(t, node, backend, modeEndpoint(t, backend, mode), mode+".flow")
		})
	}
}

// runNodeIdle runs the test with the Node program.
func runNodeIdle(t *testing.T, node string, backend mailServer, through endpointFunc, user string) {
	e := through(t, user)
	host, port := splitAddress(t, e.address)
	p, err := testbed.Start(t, testbed.FindProgram(t, "env", "coreutils"),
		"IMAP_HOST="+host, "IMAP_PORT="+port, "IMAP_USER="+user, "IMAP_PASSWORD="+password,
		"IMAP_CA="+e.caFile, "IMAP_SERVER_NAME="+e.tls.ServerName, node, "node/idle.js")
	if err != nil {
		t.Fatal(err)
	}
	message := newMessage("a letter")
	await := func(word string) {
		t.Helper()
		if err := p.WaitUntil("print "+word, func() bool { return strings.Contains(p.Output(), word+"\n") }); err != nil {
			t.Fatal(err)
		}
	}
	await("idling")
	deliverDirect(t, backend, user, message)
	await("subject a letter")
	await(fmt.Sprint("bytes ", len(message)))
	await("logged out")
}

// installNodeClients installs the packages of the Node programs and returns the path of
// node.
func installNodeClients(t *testing.T) string {
	t.Helper()
	node, npm := testbed.FindProgram(t, "node", "nodejs"), testbed.FindProgram(t, "npm", "npm")
	wanted, err := os.Stat("node/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	// npm writes this file last, so an incomplete installation is repeated.
	if done, err := os.Stat("node/node_modules/.package-lock.json"); err == nil && !done.ModTime().Before(wanted.ModTime()) {
		return node
	}
	install := exec.CommandContext(t.Context(), npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = "node"
	if output, err := install.CombinedOutput(); err != nil {
		t.Fatalf("this test needs the npm package imapflow: run npm ci in tests/node, which gave %v:\n%s", err, output)
	}
	return node
}
