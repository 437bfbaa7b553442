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

// password is the password of every user at every backend of these tests.
const password = "pw"

// endpoint is where a client connects and how.
type endpoint struct {
	address  string
	tls      *tls.Config // nil: no TLS
	starttls bool        // STARTTLS instead of implicit TLS
	caFile   string      // the trusted CA, for external programs
}

// endpointFunc returns the endpoint for a user's clients, at a backend or a gateway. It may
// first set the user's route.
type endpointFunc func(t testing.TB, user string) endpoint

// scenarioRun is one run of a scenario at one endpoint. It records the transcript of every
// client.
type scenarioRun struct {
	*testing.T

	// Set once.
	endpoint endpointFunc
	side     string // part of the user names, so that runs share no account

	// Owned by the scenario.
	clients  []*scenarioClient
	accounts map[string]string // account to person
	symbols  map[string]string // number to its symbol in the transcript
}

// scenarioClient is one connection of one user.
type scenarioClient struct {
	// Owned by the scenario.
	run         *scenarioRun
	user        string
	raw         *RawClient
	transcript  []string   // one line each: "C: …" or "S: …"
	outstanding []string   // tags and commands, alternating
	lastAnswer  []Response // to the last command
}

// runScenario runs a scenario at an endpoint and returns its transcript, grouped by client:
// the order between clients may vary.
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

// diffTranscripts returns the first difference of two transcripts with the lines before it,
// or "".
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

// account returns the account of a person in this run.
func (s *scenarioRun) account(person string) string {
	account := person + "." + s.side
	s.accounts[account] = person
	return account
}

// connect opens a connection and reads the greeting, which the transcript omits.
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

// login opens a connection and logs in. The transcript has the tagged OK, because its
// capabilities must be the backend's.
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

// expectOK sends a command that must be answered OK. It returns the normalised untagged
// responses.
func (d *scenarioClient) expectOK(command string, literals ...[]byte) []string {
	d.run.Helper()
	return d.exec("OK", command, literals...)
}

// expectNO sends a command that must be answered NO.
func (d *scenarioClient) expectNO(command string, literals ...[]byte) []string {
	d.run.Helper()
	return d.exec("NO", command, literals...)
}

// exec sends a command that must be answered with this status.
func (d *scenarioClient) exec(status, command string, literals ...[]byte) []string {
	d.run.Helper()
	d.recordCommand(command, literals)
	got, err := d.raw.Do(command, literals...)
	if err != nil {
		d.run.Fatalf("%s: %v", d.user, err)
	}
	return d.checkAnswer(status, command, got)
}

// checkAnswer records the responses to a command and checks its status.
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

// appendMessage appends a message with a fixed date, so that two runs are equal.
func (d *scenarioClient) appendMessage(mailbox string, message []byte, flags ...string) {
	d.run.Helper()
	d.expectOK(fmt.Sprintf(`APPEND %s (%s) "17-Jul-2024 02:44:25 -0700" {}`, mailbox, strings.Join(flags, " ")), message)
}

// lastNumber returns the original number after a word in the last responses.
func (d *scenarioClient) lastNumber(word string) string {
	d.run.Helper()
	find := regexp.MustCompile(word + ` \(?(\d+)`)
	for _, r := range d.lastAnswer {
		if m := find.FindStringSubmatch(r.Text); m != nil {
			return m[1]
		}
	}
	d.run.Fatalf("%s: no %s in the last responses: %v", d.user, word, d.lastAnswer)
	return ""
}

// send sends a command. receive returns the responses, in the same order.
func (d *scenarioClient) send(command string) {
	d.run.Helper()
	d.record("C", command)
	tag, err := d.raw.Send(command)
	if err != nil {
		d.run.Fatalf("%s: %s: %v", d.user, command, err)
	}
	d.outstanding = append(d.outstanding, tag, command)
}

// receive reads up to the tagged response of the oldest command, which must be OK.
func (d *scenarioClient) receive() []string {
	d.run.Helper()
	tag, command := d.outstanding[0], d.outstanding[1]
	d.outstanding = d.outstanding[2:]
	got, err := d.raw.ReadUntil(tag)
	if err != nil {
		d.run.Fatalf("%s: response to %s: %v", d.user, command, err)
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

// awaitResponse reads unsolicited responses up to this one.
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

// logout sends LOGOUT and checks that the server closes the connection.
func (d *scenarioClient) logout() {
	d.run.Helper()
	if got := d.expectOK("LOGOUT"); !strings.HasPrefix(got[0], "S: * BYE") {
		d.run.Errorf("LOGOUT gave %q", got)
	}
	// Many servers close without close_notify, which is an unexpected EOF.
	if r, err := d.raw.Read(); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		d.run.Errorf("after LOGOUT: %q, %v", r.Text, err)
	}
}

// expect fails the test unless one of the lines is exactly this response, or one of more, the
// forms of other servers.
func (d *scenarioClient) expect(got []string, want string, more ...string) {
	d.run.Helper()
	for _, line := range got {
		if line == "S: "+want || slices.Contains(more, strings.TrimPrefix(line, "S: ")) {
			return
		}
	}
	d.run.Fatalf("%s: want %q; got:\n%s", d.user, want, strings.Join(got, "\n"))
}

// recordCommand records a command with its literals.
func (d *scenarioClient) recordCommand(command string, literals [][]byte) {
	for _, literal := range literals {
		at, marker := nextLiteralMarker(command)
		if at < 0 {
			return // Send reports it
		}
		shown := Response{Text: fmt.Sprintf("{%d}", len(literal)), Literals: [][]byte{literal}}.String()
		command = command[:at] + shown + command[at+len(marker):]
	}
	d.record("C", command)
}

// record adds a normalised line to the transcript and returns it.
func (d *scenarioClient) record(direction, line string) string {
	line = direction + ": " + d.run.normalise(line)
	if !omitted.MatchString(line) {
		d.transcript = append(d.transcript, line)
	}
	return line
}

// The parts that differ between runs. Which of two sessions gets \Recent is undefined
// (RFC 3501 §2.3.2). Dovecot sends "Still here" in IDLE at times of the clock.
var (
	tagPrefix     = regexp.MustCompile(`^a\d+ `)
	omitted       = regexp.MustCompile(`^S: \* (?:\d+ RECENT|OK Still here)$`)
	recentFlag    = regexp.MustCompile(` \\Recent|\\Recent ?`)
	serverTiming  = regexp.MustCompile(` \((?:\d+ msgs in )?\d+\.\d+ [^)]*secs?(?: \d+ calls)?\)`)
	stampedNumber = regexp.MustCompile(`((?:UIDVALIDITY|COPYUID|APPENDUID|HIGHESTMODSEQ|MODSEQ|CHANGEDSINCE|UNCHANGEDSINCE) \(?)(\d+)`)
	mailboxID     = regexp.MustCompile(`(MAILBOXID \(?)([^)\]]+)`)
	qresync       = regexp.MustCompile(`(\(QRESYNC \()(\d+) (\d+)`)
)

// normalise replaces the parts that differ between runs. Equal values get equal symbols.
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

// symbol returns the symbol of a number, numbered by first occurrence.
func (s *scenarioRun) symbol(number string) string {
	if _, known := s.symbols[number]; !known {
		s.symbols[number] = fmt.Sprintf("#%d", len(s.symbols)+1)
	}
	return s.symbols[number]
}
