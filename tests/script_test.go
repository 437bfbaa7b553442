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

// entrance says where a user's clients connect: directly at a backend, or at a
// gateway, which it may first have to tell about the user.
type entrance func(t testing.TB, user string) endpoint

// script is one run of a scenario through one entrance. It writes down what
// every device says and sees.
type script struct {
	*testing.T

	// Set once.
	through entrance
	side    string // part of the user names, so that two runs share no account

	// Owned by the scenario.
	devices []*device
	people  map[string]string // account to person
	symbols map[string]string // number to what stands for it in the transcript
}

// device is one connection of one user.
type device struct {
	// Owned by the scenario.
	s    *script
	user string
	raw  *RawClient
	said []string   // one line each: "C: …" or "S: …"
	open []string   // commands sent and not answered yet: tag, then command
	last []Response // the answer to the last command
}

// play runs a scenario through an entrance and gives its transcript, device by
// device: within a device the order is the protocol's, between devices it may
// depend on the machine.
func play(t *testing.T, scenario func(*script), through entrance, side string) []string {
	t.Helper()
	s := &script{T: t, through: through, side: side, people: map[string]string{}, symbols: map[string]string{}}
	defer func() {
		for _, d := range s.devices {
			_ = d.raw.Close()
		}
	}()
	scenario(s)
	var all []string
	for i, d := range s.devices {
		for _, line := range d.said {
			all = append(all, fmt.Sprintf("device %d %s", i+1, line))
		}
	}
	return all
}

// differ shows the first place where two transcripts differ, with what led to
// it; "" when they are equal.
func differ(direct, through []string) string {
	for i := range max(len(direct), len(through)) {
		line := func(of []string) string {
			if i < len(of) {
				return of[i]
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

// name is the account of a person in this run.
func (s *script) name(person string) string {
	account := person + "." + s.side
	s.people[account] = person
	return account
}

// connect opens a connection up to its greeting, which says nothing of what IMAP
// promises and stays out of the transcript.
func (s *script) connect(person string) *device {
	s.Helper()
	d := &device{s: s, user: s.name(person)}
	e := s.through(s.T, d.user)
	first := e.tls
	if e.starttls {
		first = nil
	}
	raw, err := Connect(e.address, first)
	if err != nil {
		s.Fatalf("connect to %s: %v", e.address, err)
	}
	d.raw = raw
	s.devices = append(s.devices, d)
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
func (s *script) login(person string) *device {
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
	d.note("S", capabilities)
	return d
}

// ok sends a command and wants OK; it gives the untagged responses, as they
// stand in the transcript.
func (d *device) ok(command string, literals ...[]byte) []string {
	d.s.Helper()
	return d.do("OK", command, literals...)
}

// no sends a command and wants NO.
func (d *device) no(command string, literals ...[]byte) []string {
	d.s.Helper()
	return d.do("NO", command, literals...)
}

// do sends a command and wants a tagged response with this status.
func (d *device) do(status, command string, literals ...[]byte) []string {
	d.s.Helper()
	d.noteCommand(command, literals)
	got, err := d.raw.Do(command, literals...)
	if err != nil {
		d.s.Fatalf("%s: %v", d.user, err)
	}
	return d.finish(status, command, got)
}

// finish notes the answer to a command and wants its status.
func (d *device) finish(status, command string, got []Response) []string {
	d.s.Helper()
	before := len(d.said)
	d.last = got
	for _, r := range got {
		d.note("S", r.String())
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " "+status) {
		d.s.Fatalf("%s: %s gave %q; want %s", d.user, command, last, status)
	}
	return d.said[before:]
}

// append stores a message, at a fixed date so that two runs are alike.
func (d *device) append(mailbox string, message []byte, flags ...string) {
	d.s.Helper()
	d.ok(fmt.Sprintf(`APPEND %s (%s) "17-Jul-2024 02:44:25 -0700" {}`, mailbox, strings.Join(flags, " ")), message)
}

// number is what follows a word in the last answer, as the server wrote it.
func (d *device) number(word string) string {
	d.s.Helper()
	find := regexp.MustCompile(word + ` \(?(\d+)`)
	for _, r := range d.last {
		if m := find.FindStringSubmatch(r.Text); m != nil {
			return m[1]
		}
	}
	d.s.Fatalf("%s: no %s in the last answer: %v", d.user, word, d.last)
	return ""
}

// send begins a command; take, in the same order, takes the answers.
func (d *device) send(command string) {
	d.s.Helper()
	d.note("C", command)
	tag, err := d.raw.Send(command)
	if err != nil {
		d.s.Fatalf("%s: %s: %v", d.user, command, err)
	}
	d.open = append(d.open, tag, command)
}

// take reads up to the end of the oldest command sent, and wants OK.
func (d *device) take() []string {
	d.s.Helper()
	tag, command := d.open[0], d.open[1]
	d.open = d.open[2:]
	got, err := d.raw.Until(tag)
	if err != nil {
		d.s.Fatalf("%s: answer to %s: %v", d.user, command, err)
	}
	return d.finish("OK", command, got)
}

// startIdle begins IDLE (RFC 2177).
func (d *device) startIdle() {
	d.s.Helper()
	d.send("IDLE")
	for {
		r, err := d.raw.Read()
		if err != nil {
			d.s.Fatalf("%s: IDLE: %v", d.user, err)
		}
		if strings.HasPrefix(r.Text, "+") {
			return
		}
		d.note("S", r.String())
	}
}

// await reads what comes unasked until a response is this one.
func (d *device) await(want string) {
	d.s.Helper()
	for {
		r, err := d.raw.Read()
		if err != nil {
			d.s.Fatalf("%s: waiting for %q: %v; so far:\n%s", d.user, want, err, strings.Join(d.said, "\n"))
		}
		if d.note("S", r.String()) == "S: "+want {
			return
		}
	}
}

// endIdle ends IDLE.
func (d *device) endIdle() {
	d.s.Helper()
	d.note("C", "DONE")
	if _, err := io.WriteString(d.raw, "DONE\r\n"); err != nil {
		d.s.Fatalf("%s: DONE: %v", d.user, err)
	}
	d.take()
}

// logout says goodbye and wants the connection closed after it.
func (d *device) logout() {
	d.s.Helper()
	if got := d.ok("LOGOUT"); !strings.HasPrefix(got[0], "S: * BYE") {
		d.s.Errorf("LOGOUT gave %q", got)
	}
	// A close without close_notify is common, and seen as an unexpected end.
	if r, err := d.raw.Read(); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		d.s.Errorf("after LOGOUT: %q, %v", r.Text, err)
	}
}

// want fails the test unless one of the lines is exactly this response; more are
// the same in the words of other servers.
func (d *device) want(got []string, want string, more ...string) {
	d.s.Helper()
	for _, line := range got {
		if line == "S: "+want || slices.Contains(more, strings.TrimPrefix(line, "S: ")) {
			return
		}
	}
	d.s.Fatalf("%s: want %q; got:\n%s", d.user, want, strings.Join(got, "\n"))
}

// noteCommand writes a command down, with its literals.
func (d *device) noteCommand(command string, literals [][]byte) {
	for _, literal := range literals {
		at, marker := nextMarker(command)
		if at < 0 {
			return // Send will say so
		}
		shown := Response{Text: fmt.Sprintf("{%d}", len(literal)), Literals: [][]byte{literal}}.String()
		command = command[:at] + shown + command[at+len(marker):]
	}
	d.note("C", command)
}

// note writes a line into the transcript, without what differs from one run to
// another for good reasons, and gives it.
func (d *device) note(who, line string) string {
	line = who + ": " + d.s.normalise(line)
	if !recent.MatchString(line) {
		d.said = append(d.said, line)
	}
	return line
}

// What differs from run to run. Which of two sessions is told \Recent is a race
// of IMAP itself (RFC 3501 §2.3.2).
var (
	tagged     = regexp.MustCompile(`^a\d+ `)
	recent     = regexp.MustCompile(`^S: \* \d+ RECENT$`)
	recentFlag = regexp.MustCompile(` \\Recent|\\Recent ?`)
	timing     = regexp.MustCompile(` \((?:\d+ msgs in )?\d+\.\d+ [^)]*secs?(?: \d+ calls)?\)`)
	stamp      = regexp.MustCompile(`((?:UIDVALIDITY|COPYUID|APPENDUID|HIGHESTMODSEQ|MODSEQ|CHANGEDSINCE|UNCHANGEDSINCE) \(?)(\d+)`)
	mailboxID  = regexp.MustCompile(`(MAILBOXID \(?)([^)\]]+)`)
	qresync    = regexp.MustCompile(`(\(QRESYNC \()(\d+) (\d+)`)
)

// normalise replaces what two runs cannot have in common. Equal values stay
// equal: the third UIDVALIDITY of a run is the same symbol wherever it stands.
func (s *script) normalise(line string) string {
	line = tagged.ReplaceAllString(line, "tag ")
	line = timing.ReplaceAllString(line, "")
	line = recentFlag.ReplaceAllString(line, "")
	line = qresync.ReplaceAllStringFunc(line, func(m string) string {
		part := qresync.FindStringSubmatch(m)
		return part[1] + s.symbol(part[2]) + " " + s.symbol(part[3])
	})
	line = stamp.ReplaceAllStringFunc(line, func(m string) string {
		part := stamp.FindStringSubmatch(m)
		return part[1] + s.symbol(part[2])
	})
	line = mailboxID.ReplaceAllStringFunc(line, func(m string) string {
		part := mailboxID.FindStringSubmatch(m)
		return part[1] + s.symbol(part[2])
	})
	for account, person := range s.people {
		line = strings.ReplaceAll(line, account, person)
	}
	return line
}

// symbol names a number by when it was first seen.
func (s *script) symbol(number string) string {
	if _, known := s.symbols[number]; !known {
		s.symbols[number] = fmt.Sprintf("#%d", len(s.symbols)+1)
	}
	return s.symbols[number]
}
