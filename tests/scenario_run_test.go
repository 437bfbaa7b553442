package tests

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// password is every user's at every backend of these tests.
const password = "pw"

// endpoint is where a client connects and how.
type endpoint struct {
	address  string
	tls      *tls.Config // nil: no TLS at all
	starttls bool        // TLS by STARTTLS instead of from the first byte
	caFile   string      // whom tls trusts, for programs that read files
}

// endpointFunc says where a user's clients connect: directly at a backend, or at a
// gateway, which it may first have to tell about the user.
type endpointFunc func(t testing.TB, user string) endpoint

// scenarioRun is one run of a scenario through one entrance. It writes down what
// every device says and sees.
type scenarioRun struct {
	*testing.T

	// Set once.
	endpoint endpointFunc
	side     string // part of the user names, so that two runs share no account

	// Owned by the scenario.
	clients  []*scenarioClient
	accounts map[string]string // account to person
	symbols  map[string]string // number to what stands for it in the transcript
}

// scenarioClient is one connection of one user.
type scenarioClient struct {
	// Owned by the scenario.
	run         *scenarioRun
	user        string
	raw         *RawClient
	transcript  []string   // one line each: "C: …" or "S: …"
	outstanding []string   // commands sent and not answered yet: tag, then command
	lastAnswer  []Response // the answer to the last command
}

// runScenario runs a scenario through an entrance and gives its transcript, device by
// device: within a device the order is the protocol's, between devices it may
// depend on the machine.
func runScenario(t *testing.T, scenario func(*scenarioRun), endpointOf endpointFunc, side string) []string {
	t.Helper()
	s := &scenarioRun{T: t, endpoint: endpointOf, side: side, accounts: map[string]string{}, symbols: map[string]string{}}
	defer func() {
		for _, d := range s.clients {
			_ = d.raw.Close()
		}
	}()
	scenario(s)
	var all []string
	for i, d := range s.clients {
		for _, line := range d.transcript {
			all = append(all, fmt.Sprintf("device %d %s", i+1, line))
		}
	}
	return all
}

// diffTranscripts shows the first place where two transcripts differ, with what led to
// it; "" when they are equal.
func diffTranscripts(direct, through []string) string {
	for i := range max(len(direct), len(through)) {
		line := func(transcript []string) string {
			if i < len(transcript) {
				return transcript[i]
			}
			return "(nothing)"
		}
		if line(direct) != line(through) {
			before := strings.Join(direct[max(0, i-5):i], "\n    ")
			return fmt.Sprintf("    %s\n--- %s\n+++ %s", before, line(direct), line(through))
		}
	}
	return ""
}

// account is the account of a person in this run.
func (s *scenarioRun) account(person string) string {
	account := person + "." + s.side
	s.accounts[account] = person
	return account
}

// connect opens a connection up to its greeting, which says nothing of what IMAP
// promises and stays out of the transcript.
func (s *scenarioRun) connect(person string) *scenarioClient {
	s.Helper()
	d := &scenarioClient{run: s, user: s.account(person)}
	e := s.endpoint(s.T, d.user)
	tlsConfig := e.tls
	if e.starttls {
		tlsConfig = nil
	}
	raw, err := Connect(e.address, tlsConfig)
	if err != nil {
		s.Fatalf("connect to %s: %v", e.address, err)
	}
	d.raw = raw
	s.clients = append(s.clients, d)
	if greeting, err := raw.Read(); err != nil || !strings.HasPrefix(greeting.Text, "* OK ") {
		s.Fatalf("greeting %q, %v", greeting.Text, err)
	}
	if e.starttls {
		if err := raw.StartTLS(e.tls); err != nil {
			s.Fatal(err)
		}
	}
	return d
}

// login opens a connection and logs in. What the tagged OK says is compared: a
// client must learn from it what the backend can do.
func (s *scenarioRun) login(person string) *scenarioClient {
	s.Helper()
	d := s.connect(person)
	got, err := d.raw.Do("LOGIN " + d.user + " " + password)
	if err != nil {
		s.Fatalf("log in as %s: %v", d.user, err)
	}
	last := got[len(got)-1].Text
	if !strings.Contains(last, " OK [CAPABILITY ") {
		s.Fatalf("login as %s: %q; want OK with the capabilities", d.user, last)
	}
	capabilities, _, _ := strings.Cut(last, "]")
	d.record("S", capabilities)
	return d
}

// expectOK sends a command and wants OK; it gives the untagged responses, as they
// stand in the transcript.
func (d *scenarioClient) expectOK(command string, literals ...[]byte) []string {
	d.run.Helper()
	return d.exec("OK", command, literals...)
}

// expectNO sends a command and wants NO.
func (d *scenarioClient) expectNO(command string, literals ...[]byte) []string {
	d.run.Helper()
	return d.exec("NO", command, literals...)
}

// exec sends a command and wants a tagged response with this status.
func (d *scenarioClient) exec(status, command string, literals ...[]byte) []string {
	d.run.Helper()
	d.recordCommand(command, literals)
	got, err := d.raw.Do(command, literals...)
	if err != nil {
		d.run.Fatalf("%s: %v", d.user, err)
	}
	return d.checkAnswer(status, command, got)
}

// checkAnswer notes the answer to a command and wants its status.
func (d *scenarioClient) checkAnswer(status, command string, got []Response) []string {
	d.run.Helper()
	before := len(d.transcript)
	d.lastAnswer = got
	for _, r := range got {
		d.record("S", r.String())
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " "+status) {
		d.run.Fatalf("%s: %s gave %q; want %s", d.user, command, last, status)
	}
	return d.transcript[before:]
}

// appendMessage stores a message, at a fixed date so that two runs are alike.
func (d *scenarioClient) appendMessage(mailbox string, message []byte, flags ...string) {
	d.run.Helper()
	d.expectOK(fmt.Sprintf(`APPEND %s (%s) "17-Jul-2024 02:44:25 -0700" {}`, mailbox, strings.Join(flags, " ")), message)
}

// lastNumber is what follows a word in the last answer, as the server wrote it.
func (d *scenarioClient) lastNumber(word string) string {
	d.run.Helper()
	find := regexp.MustCompile(word + ` \(?(\d+)`)
	for _, r := range d.lastAnswer {
		if m := find.FindStringSubmatch(r.Text); m != nil {
			return m[1]
		}
	}
	d.run.Fatalf("%s: no %s in the last answer: %v", d.user, word, d.lastAnswer)
	return ""
}

// send begins a command; take, in the same order, takes the answers.
func (d *scenarioClient) send(command string) {
	d.run.Helper()
	d.record("C", command)
	tag, err := d.raw.Send(command)
	if err != nil {
		d.run.Fatalf("%s: %s: %v", d.user, command, err)
	}
	d.outstanding = append(d.outstanding, tag, command)
}

// receive reads up to the end of the oldest command sent, and wants OK.
func (d *scenarioClient) receive() []string {
	d.run.Helper()
	tag, command := d.outstanding[0], d.outstanding[1]
	d.outstanding = d.outstanding[2:]
	got, err := d.raw.ReadUntil(tag)
	if err != nil {
		d.run.Fatalf("%s: answer to %s: %v", d.user, command, err)
	}
	return d.checkAnswer("OK", command, got)
}

// startIdle begins IDLE (RFC 2177).
func (d *scenarioClient) startIdle() {
	d.run.Helper()
	d.send("IDLE")
	for {
		r, err := d.raw.Read()
		if err != nil {
			d.run.Fatalf("%s: IDLE: %v", d.user, err)
		}
		if strings.HasPrefix(r.Text, "+") {
			return
		}
		d.record("S", r.String())
	}
}

// awaitResponse reads what comes unasked until a response is this one.
func (d *scenarioClient) awaitResponse(want string) {
	d.run.Helper()
	for {
		r, err := d.raw.Read()
		if err != nil {
			d.run.Fatalf("%s: waiting for %q: %v; so far:\n%s", d.user, want, err, strings.Join(d.transcript, "\n"))
		}
		if d.record("S", r.String()) == "S: "+want {
			return
		}
	}
}

// endIdle ends IDLE.
func (d *scenarioClient) endIdle() {
	d.run.Helper()
	d.record("C", "DONE")
	if _, err := io.WriteString(d.raw, "DONE\r\n"); err != nil {
		d.run.Fatalf("%s: DONE: %v", d.user, err)
	}
	d.receive()
}

// logout says goodbye and wants the connection closed after it.
func (d *scenarioClient) logout() {
	d.run.Helper()
	if got := d.expectOK("LOGOUT"); !strings.HasPrefix(got[0], "S: * BYE") {
		d.run.Errorf("LOGOUT gave %q", got)
	}
	// A close without close_notify is common, and seen as an unexpected end.
	if r, err := d.raw.Read(); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		d.run.Errorf("after LOGOUT: %q, %v", r.Text, err)
	}
}

// expect fails the test unless one of the lines is exactly this response; more are
// the same in the words of other servers.
func (d *scenarioClient) expect(got []string, want string, more ...string) {
	d.run.Helper()
	for _, line := range got {
		if line == "S: "+want || slices.Contains(more, strings.TrimPrefix(line, "S: ")) {
			return
		}
	}
	d.run.Fatalf("%s: want %q; got:\n%s", d.user, want, strings.Join(got, "\n"))
}

// recordCommand writes a command down, with its literals.
func (d *scenarioClient) recordCommand(command string, literals [][]byte) {
	for _, literal := range literals {
		at, marker := nextLiteralMarker(command)
		if at < 0 {
			return // Send will say so
		}
		shown := Response{Text: fmt.Sprintf("{%d}", len(literal)), Literals: [][]byte{literal}}.String()
		command = command[:at] + shown + command[at+len(marker):]
	}
	d.record("C", command)
}

// record writes a line into the transcript, without what differs from one run to
// another for good reasons, and gives it.
func (d *scenarioClient) record(direction, line string) string {
	line = direction + ": " + d.run.normalise(line)
	if !recent.MatchString(line) {
		d.transcript = append(d.transcript, line)
	}
	return line
}

// What differs from run to run. Which of two sessions is told \Recent is a race
// of IMAP itself (RFC 3501 §2.3.2).
var (
	tagPrefix     = regexp.MustCompile(`^a\d+ `)
	recent        = regexp.MustCompile(`^S: \* \d+ RECENT$`)
	recentFlag    = regexp.MustCompile(` \\Recent|\\Recent ?`)
	serverTiming  = regexp.MustCompile(` \((?:\d+ msgs in )?\d+\.\d+ [^)]*secs?(?: \d+ calls)?\)`)
	stampedNumber = regexp.MustCompile(`((?:UIDVALIDITY|COPYUID|APPENDUID|HIGHESTMODSEQ|MODSEQ|CHANGEDSINCE|UNCHANGEDSINCE) \(?)(\d+)`)
	mailboxID     = regexp.MustCompile(`(MAILBOXID \(?)([^)\]]+)`)
	qresync       = regexp.MustCompile(`(\(QRESYNC \()(\d+) (\d+)`)
)

// normalise replaces what two runs cannot have in common. Equal values stay
// equal: the third UIDVALIDITY of a run is the same symbol wherever it stands.
func (s *scenarioRun) normalise(line string) string {
	line = tagPrefix.ReplaceAllString(line, "tag ")
	line = serverTiming.ReplaceAllString(line, "")
	line = recentFlag.ReplaceAllString(line, "")
	line = qresync.ReplaceAllStringFunc(line, func(m string) string {
		part := qresync.FindStringSubmatch(m)
		return part[1] + s.symbol(part[2]) + " " + s.symbol(part[3])
	})
	line = stampedNumber.ReplaceAllStringFunc(line, func(m string) string {
		part := stampedNumber.FindStringSubmatch(m)
		return part[1] + s.symbol(part[2])
	})
	line = mailboxID.ReplaceAllStringFunc(line, func(m string) string {
		part := mailboxID.FindStringSubmatch(m)
		return part[1] + s.symbol(part[2])
	})
	for account, person := range s.accounts {
		line = strings.ReplaceAll(line, account, person)
	}
	return line
}

// symbol names a number by when it was first seen.
func (s *scenarioRun) symbol(number string) string {
	if _, known := s.symbols[number]; !known {
		s.symbols[number] = fmt.Sprintf("#%d", len(s.symbols)+1)
	}
	return s.symbols[number]
}
