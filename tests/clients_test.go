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

// Mail clients that people use, through the gateway.

// runs bounds one run of a program.
const runs = 90 * time.Second

func TestMbsyncPullsTheSameThousandMessages(t *testing.T) {
	t.Parallel()
	mbsync := testbed.Program(t, "mbsync", "isync")
	const user, n = "collector", 1000
	backend := startMail(t, user)
	sent := fill(t, directly(backend), user, n)

	direct := pull(t, mbsync, directly(backend)(t, user), user)
	if !maps.Equal(sent, direct) {
		t.Fatalf("%d messages pulled directly are not the %d stored", len(direct), n)
	}
	for _, mode := range modes[:3] {
		if pulled := pull(t, mbsync, through(t, backend, mode)(t, user), user); !maps.Equal(direct, pulled) {
			t.Errorf("%d messages pulled directly and %d in mode %s are not the same", len(direct), len(pulled), mode)
		}
	}
}

// mailHash is the SHA-256 of a message.
type mailHash [sha256.Size]byte

// fill stores n messages of many sizes and gives the hash of each by its
// subject, as it will be in a Maildir.
func fill(t *testing.T, through entrance, user string, n int) map[string]mailHash {
	t.Helper()
	e := through(t, user)
	c, err := Connect(e.address, e.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // all answers were read
	hashes := map[string]mailHash{}
	// RFC 3502: one APPEND for many messages.
	var command strings.Builder
	command.WriteString("APPEND INBOX")
	var literals [][]byte
	for i := range n {
		subject := fmt.Sprint("number ", i)
		m := mailOf(200+i*i%40_000, subject)
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
	// subjectOf finds the subject of a message.
	subjectOf = regexp.MustCompile(`(?m)^Subject: (.*)$`)
	// mbsyncMark is a header line with a random word which mbsync adds itself.
	mbsyncMark = regexp.MustCompile(`(?m)^X-TUID: .{12}\n`)
)

// pull makes mbsync copy INBOX into an empty Maildir and gives the hash of each
// message by its subject.
func pull(t *testing.T, mbsync string, e endpoint, user string) map[string]mailHash {
	t.Helper()
	path := mbsyncrc(t, e, account{user, password, "LOGIN"})
	run(t, mbsync, "-c", path, "all")
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
		m := subjectOf.FindSubmatch(header)
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

// account is whom mbsync logs in as, and how.
type account struct{ user, password, mechanism string }

// mbsyncrc writes a configuration with which mbsync pulls INBOX into a Maildir
// "inbox" beside it. mbsync compares names only, so the certificate must be for
// localhost.
func mbsyncrc(t *testing.T, e endpoint, a account) (path string) {
	t.Helper()
	dir := t.TempDir()
	_, port := split(t, e.address)
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

// run runs a program to its end and wants success.
func run(t *testing.T, path string, args ...string) {
	t.Helper()
	p, err := testbed.Start(t, path, args...)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(runs):
		t.Fatalf("%s did not end within %v:\n%s", path, runs, p.Output())
	}
	if err := p.Err(); err != nil {
		t.Fatalf("%s: %v\n%s", path, err, p.Output())
	}
}

func split(t *testing.T, address string) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func TestAGoProgramIdlesAndReadsNewMail(t *testing.T) {
	t.Parallel()
	backend := startMail(t, inEveryMode("gopher")...)
	for _, mode := range modes[:3] {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			idlesAndReads(t, backend, through(t, backend, mode), mode+".gopher")
		})
	}
}

// idlesAndReads is the Go program.
func idlesAndReads(t *testing.T, backend mailServer, through entrance, user string) {
	e := through(t, user)
	exists := make(chan uint32, 16) // more than this test makes
	c := gopher(t, e, &imapclient.Options{
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
	deliver(t, backend, user, mail("burrows"))
	select {
	case n := <-exists:
		if n != 1 {
			t.Errorf("%d messages, want 1", n)
		}
	case <-time.After(Patience):
		t.Fatal("no news of the mail while idle")
	}
	if err := idle.Close(); err != nil {
		t.Fatal(err)
	}
	if err := idle.Wait(); err != nil {
		t.Fatal(err)
	}
	readOne(t, c, mail("burrows"))
	if err := c.Logout().Wait(); err != nil {
		t.Error(err)
	}
}

// readOne wants the only message to be this one.
func readOne(t *testing.T, c *imapclient.Client, want []byte) {
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

// deliver stores a message in a user's INBOX directly at the backend.
func deliver(t *testing.T, backend mailServer, user string, message []byte) {
	t.Helper()
	e := directly(backend)(t, user)
	c, err := Connect(e.address, e.tls)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() // its answer was read
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
	node := nodeClients(t)
	backend := startMail(t, inEveryMode("flow")...)
	for _, mode := range modes[:3] {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			idlesAndReceives(t, node, backend, through(t, backend, mode), mode+".flow")
		})
	}
}

// idlesAndReceives is the Node program.
func idlesAndReceives(t *testing.T, node string, backend mailServer, through entrance, user string) {
	e := through(t, user)
	host, port := split(t, e.address)
	p, err := testbed.Start(t, testbed.Program(t, "env", "coreutils"),
		"IMAP_HOST="+host, "IMAP_PORT="+port, "IMAP_USER="+user, "IMAP_PASSWORD="+password,
		"IMAP_CA="+e.caFile, "IMAP_SERVER_NAME="+e.tls.ServerName, node, "node/idle.js")
	if err != nil {
		t.Fatal(err)
	}
	message := mail("a letter")
	await := func(word string) {
		t.Helper()
		if err := p.WaitUntil("say "+word, func() bool { return strings.Contains(p.Output(), word+"\n") }); err != nil {
			t.Fatal(err)
		}
	}
	await("idling")
	deliver(t, backend, user, message)
	await("subject a letter")
	await(fmt.Sprint("bytes ", len(message)))
	await("goodbye")
}

// nodeClients gives the path of node, after installing the packages its scripts
// need.
func nodeClients(t *testing.T) string {
	t.Helper()
	node, npm := testbed.Program(t, "node", "nodejs"), testbed.Program(t, "npm", "npm")
	wanted, err := os.Stat("node/package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	// npm writes this file last, so an installation that broke off is repeated.
	if done, err := os.Stat("node/node_modules/.package-lock.json"); err == nil && !done.ModTime().Before(wanted.ModTime()) {
		return node
	}
	install := exec.CommandContext(t.Context(), npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = "node"
	if said, err := install.CombinedOutput(); err != nil {
		t.Fatalf("this test needs the npm package imapflow: run npm ci in tests/node, which gave %v:\n%s", err, said)
	}
	return node
}
