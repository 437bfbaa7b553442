package tests

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// literalForms are commands with a literal at L: where it is allowed, where it is not, in
// commands without arguments, in malformed commands, and in unknown commands. Constant.
var literalForms = []string{
	// Commands without arguments.
	"NOOP L", "CAPABILITY L", "CHECK L", "CLOSE L", "UNSELECT L", "EXPUNGE L", "NAMESPACE L", "IDLE L", "LOGOUT L",
	"STARTTLS L", "NOOP ~L", "NOOP x L", "NOOPL", "NOOP L x",
	"COMPRESS L", "UNAUTHENTICATE L", "AUTHENTICATE L", "AUTHENTICATE PLAIN L", "GETJMAPACCESS L",
	// Commands whose arguments are atoms and numbers.
	"ENABLE L", "ENABLE CONDSTORE L", "UID EXPUNGE L", "UID EXPUNGE 1 L", "CANCELUPDATE L", "UIDBATCHES L",
	"FETCH L FLAGS", "FETCH 1 L", "FETCH 1 (FLAGS)) L", "FETCH 1 (FLAGS L)", "FETCH 1 BODY[L]", "FETCH 1 BODY.PEEK[HEADER.FIELDS L]",
	"FETCH 1 BODY.PEEK[HEADER.FIELDS (L)]", "FETCH 1 BODY.PEEK[HEADER.FIELDS (DATE L)]", "UID FETCH 1 FLAGS L", "UID FETCH L (FLAGS)",
	"STORE 1 FLAGS L", "STORE L FLAGS (\\Seen)", "STORE 1 FLAGS (L)", "STORE 1 (UNCHANGEDSINCE L) FLAGS (\\Seen)", "UID STORE 1 +FLAGS L",
	"UID L", "UID NOOP L", "UID FROB L",
	// Commands whose arguments may be literals.
	"LOGIN L", "LOGIN eve L", "ID L", "ID (L NIL)", "ID (\"name\" L)", "SELECT L", "EXAMINE L", "SELECT INBOX L", "SELECT INBOX (L)",
	"CREATE L", "DELETE L", "RENAME L y", "RENAME y L", "SUBSCRIBE L", "UNSUBSCRIBE L", "CREATE y L", "CREATE (L)",
	"LIST L *", "LIST \"\" L", "LIST \"\" * L", "LIST \"\" (L)", "LIST (L) \"\" *", "LIST \"\" * RETURN (STATUS (L))", "LSUB \"\" L", "LSUB \"\" * L", "XLIST \"\" L", "RLIST L *",
	"STATUS L (MESSAGES)", "STATUS INBOX L", "STATUS INBOX (L)", "STATUS INBOX (MESSAGES) L",
	"GETACL L", "SETACL INBOX L lrs", "DELETEACL INBOX L", "LISTRIGHTS INBOX L", "MYRIGHTS L", "GETQUOTA L", "GETQUOTAROOT L", "SETQUOTA L (STORAGE 1)", "SETQUOTA \"\" (L)",
	"GETMETADATA INBOX L", "GETMETADATA L /private/comment", "SETMETADATA INBOX (/private/comment L)", "SETMETADATA INBOX L", "GETANNOTATION L * value", "SETANNOTATION INBOX L x",
	"GENURLAUTH L INTERNAL", "URLFETCH L", "RESETKEY L", "XAPPLEPUSHSERVICE L", "CONVERSIONS L x", "NOTIFY L", "NOTIFY SET (L)", "LANGUAGE L", "COMPARATOR L",
	"COPY 1 L", "COPY L INBOX", "COPY 1 y L", "COPY 1,, L", "MOVE 1 L", "MOVE L y", "UID COPY 1 L", "UID MOVE 99 L", "UID MOVE L y",
	"SEARCH L", "SEARCH SUBJECT L", "SEARCH (ALL)) L", "SEARCH (SUBJECT L", "SEARCH CHARSET L ALL", "SEARCH CHARSET x SUBJECT L", "SEARCH FROB L", "SEARCH KEYWORD L", "SEARCH KEYWORD aL",
	"SEARCH \"SUBJECT\" L", "SEARCH RETURN (L) ALL", "SEARCH RETURN (FROB L) ALL", "SEARCH BODY \xf6 L", "UID SEARCH HEADER L x", "UID SEARCH UID L", "SEARCH ALL L", "ESEARCH IN (L) ALL",
	"SORT L UTF-8 ALL", "SORT (DATE) L ALL", "SORT (DATE) UTF-8 L", "SORT (FROB) UTF-8 SUBJECT L", "THREAD L UTF-8 ALL", "THREAD REFERENCES L ALL", "THREAD REFERENCES UTF-8 SUBJECT L", "CONVERT L x",
	// Messages.
	"APPEND L", "APPEND L x", "APPEND INBOX L", "APPEND INBOX ~L", "APPEND INBOX (\\Forwarded) L", "APPEND INBOX (\\Seen) L", "APPEND INBOX (\\Seen) \"17-Jul-2024 02:44:25 -0700\" L", "APPEND INBOX \"never\" L", "APPEND INBOX \"77-Jul-2024 02:44:25 -0700\" L",
	"APPEND INBOX (\\Seen \"17-Jul-2024 02:44:25 -0700\" L", "APPEND Sent Items L", "APPEND \"Sent Items\" L", "APPEND \xf6 L", "APPEND INBOX (\xf6) L", "APPEND INBOX (a(b) L", "APPEND INBOX ($Forwarded) L", "APPEND nowhere L", "APPEND \"\" L", "APPEND & L",
	"APPEND a/b//c L", "APPEND / L", "APPEND INBOX () L", "APPEND INBOX (()) L", "APPEND INBOX (\"\\\\Seen\") L", "APPEND INBOX x L", "APPEND INBOX CATENATE (TEXT L)", "APPEND INBOX CATENATE (URL L)", "APPEND INBOX UTF8 (~L)", "APPEND (INBOX) L", "APPEND INBOX (\\Recent) L", "APPEND  INBOX L", "REPLACE 1 INBOX L", "REPLACE L INBOX", "UID REPLACE 1 INBOX L",
	"APPEND INBOX NIL L", "APPEND NIL L", "APPEND INBOX (\\Seen) \"x\" \"y\" L", "APPEND INBOX (\\Seen) (\\Seen) L", "APPEND INBOX CATENATE L", "APPEND INBOX CATENATE (L)", "APPEND INBOX ANNOTATION (a (b c)) L",
	"APPEND INBOX {3+}\r\nabc L", "APPEND INBOX {3+}\r\nabc x L", "APPEND INBOX {3+}\r\nabc (\\Forwarded) L", "APPEND INBOX {3+}\r\nabc(L", "APPEND INBOX {3+}\r\nabcL", "APPEND INBOX CATENATE (TEXT {3+}\r\nabc URL L)", "APPEND INBOX CATENATE (TEXT {3+}\r\nabc TEXT L", "APPEND {5+}\r\nINBOX x L",
	// Unknown commands, and lines that are no commands.
	"FROB L", "X-FROB L", "XKILL a L", "FROB (L) y", "NOOP\tL", "L", "\"NOOP\" L", "(NOOP) L", "DONE L",
	// No literals, because they are inside an unterminated string.
	"LIST \"\" \"L", "NOOP \"L", "SEARCH SUBJECT \"a L", "SEARCH SUBJECT 5\" L", "CREATE \"a\\\" L", "FROB \"L", "APPEND \"INBOX L", "APPEND INBOX (\"a) L", "SELECT \"L",
}

// Whatever a client does with literals, a real Dovecot executes exactly the commands in the
// audit log, and the gateway counts no protocol violation.
func TestEveryCommandThatIsExecutedIsOnRecord(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	for _, mode := range []event.Mode{event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			g := startGateway(t, backend.CA, singleBackend(plainBackend(backend.Plain)+muxMode(mode, "")), "audit: {commands: all}")
			p := &literalProber{T: t, g: g, user: "lit." + string(mode)}
			p.open()
			if err := checkOK(p.c.Do("APPEND INBOX {}", []byte("Subject: x\r\n\r\nx\r\n"))); err != nil {
				t.Fatal(err)
			}
			p.probeAll()
			p.compare(listMailboxes(t, backend, p.user), "ok")
		})
	}
}

// defaultProbes is the number of random lines, unless probesEnv is set in the environment.
const (
	defaultProbes = 60
	probesEnv     = "LITERAL_PROBES"
)

// The same holds for random lines. They are made by cutting and joining forms at random
// positions, and inserting or removing special characters.
func TestEveryCommandAfterARandomLineIsOnRecord(t *testing.T) {
	t.Parallel()
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	probes := defaultProbes
	if text := os.Getenv(probesEnv); text != "" {
		var err error
		if probes, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []event.Mode{event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			seed := testbed.Seed(t)
			rnd := rand.New(rand.NewPCG(seed, 0))
			g := startGateway(t, backend.CA, singleBackend(plainBackend(backend.Plain)+muxMode(mode, "")), "audit: {commands: all}")
			p := &literalProber{T: t, g: g, user: "rnd." + string(mode)}
			p.open()
			if err := checkOK(p.c.Do("APPEND INBOX {}", []byte("Subject: x\r\n\r\nx\r\n"))); err != nil {
				t.Fatal(err)
			}
			for i := range probes {
				before, after := randomLine(rnd)
				size := [...]string{"{%d}", "{%d+}"}[rnd.IntN(2)]
				p.probeBetween(before, size, after, fmt.Sprint("push", i))
			}
			p.close()
			p.compare(listMailboxes(t, backend, p.user), "ok")
		})
	}
}

// randomLine returns a line with a literal, in two parts. It has no line end, because the
// session may be pinned after the first of two lines.
func randomLine(rnd *rand.Rand) (before, after string) {
	const meaning = " ()[]{}\"\\*%~+,:<>.$"
	form := func() (before, after string) {
		for {
			if before, after = cutForm(literalForms[rnd.IntN(len(literalForms))]); !strings.Contains(before, "\n") {
				return before, after
			}
		}
	}
	before, after = form()
	for range rnd.IntN(4) {
		at := rnd.IntN(len(before) + 1)
		switch rnd.IntN(5) {
		case 0:
			before = before[:at] + string(meaning[rnd.IntN(len(meaning))]) + before[at:]
		case 1:
			before = before[:at] + before[min(at+1, len(before)):]
		case 2:
			other, _ := form()
			before = before[:at] + other[rnd.IntN(len(other)+1):]
		case 3:
			_, after = form()
		case 4:
			before = before[:at] + " " + before[at:]
		}
	}
	return before, after
}

// A backend that refuses every command before its literal, and executes octets without a
// continuation as commands, gets no literal from any client.
func TestABackendThatRefusesEverythingIsSentNoLiteral(t *testing.T) {
	t.Parallel()
	for _, mode := range []event.Mode{event.ModeReuse, event.ModeResume} {
		t.Run(string(mode), func(t *testing.T) {
			b := &refusingBackend{commands: map[string]bool{}}
			g := startGateway(t, testbed.NewCA(t), singleBackend(plainBackend(testkit.StartIMAP(t, b.serve).Addr())+muxMode(mode, "")), "audit: {commands: all}")
			p := &literalProber{T: t, g: g, user: "lit." + string(mode)}
			p.open()
			p.probeAll()
			b.mu.Lock()
			defer b.mu.Unlock()
			p.compare(b.commands, "bad")
		})
	}
}

// refusingBackend is such a backend. It accepts SELECT, NOOP, and an APPEND that RFC 7888
// does not allow it to refuse early.
type refusingBackend struct {
	mu       sync.Mutex
	commands map[string]bool // Guarded by mu. Mailboxes of the received CREATEs.
}

func (b *refusingBackend) serve(conn *testkit.Conn) {
	w := bufio.NewWriter(conn)
	_, _ = w.WriteString("* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ AUTH=PLAIN] ready\r\n") // Flush has the error
	for w.Flush() == nil {
		tag, rest, err := conn.ReadCommand()
		if err != nil {
			return
		}
		name, args, _ := strings.Cut(rest, " ")
		status := "BAD no"
		switch {
		case name == "AUTHENTICATE":
			status = "OK [CAPABILITY IMAP4rev1 LITERAL+ UNSELECT CATENATE] welcome"
		case name == "SELECT" && args == "INBOX":
			_, _ = w.WriteString("* 1 EXISTS\r\n* OK [UIDVALIDITY 1] valid\r\n* OK [UIDNEXT 2] next\r\n")
			status = "OK [READ-WRITE] done"
		case rest == "FETCH 1:1 (UID)":
			_, _ = w.WriteString("* 1 FETCH (UID 1)\r\n")
			status = "OK done"
		case rest == "NOOP", rest == "UNSELECT":
			status = "OK done"
		case name == "CREATE":
			b.mu.Lock()
			b.commands[args] = true
			b.mu.Unlock()
		case name == "APPEND":
			if size, ok := literalSize(strings.Replace(rest, "+}", "}", 1)); ok && strings.HasSuffix(rest, "+}") {
				_, _ = conn.R.Discard(size)
				_, _ = conn.R.ReadString('\n')
				status = "NO no"
			}
		}
		_, _ = w.WriteString(tag + " " + status + "\r\n")
	}
}

// listMailboxes returns a user's mailboxes, directly from Dovecot.
func listMailboxes(t *testing.T, backend *testbed.Dovecot, user string) map[string]bool {
	t.Helper()
	c := mustDial(t, directEndpoint(backend)(t, user), "")
	mustExec(t, c, "LOGIN "+user+" "+password)
	got, err := c.Do(`LIST "" *`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for _, r := range got[:len(got)-1] {
		name := r.Text[strings.LastIndexByte(r.Text, ' ')+1:]
		if len(r.Literals) > 0 {
			name = string(r.Literals[0])
		}
		all[strings.Trim(name, `"`)] = true
	}
	return all
}

// literalProber sends forms, in one session after another.
type literalProber struct {
	*testing.T

	// Set once.
	g    *gateway
	user string

	// Owned by the test.
	c         *RawClient // nil: the last session has ended or is pinned
	sessions  int
	responses []string // since the form was sent
}

func (p *literalProber) open() {
	p.Helper()
	p.c = mustDial(p.T, p.g.endpoint(event.NoTLS), "")
	p.sessions++
	mustExec(p.T, p.c, "LOGIN "+p.user+" "+password)
}

// sampleInterval means that one in so many forms is sent, because all of them take minutes.
const sampleInterval = 5

// probeAll sends each form with a synchronizing and with a non-synchronizing literal.
func (p *literalProber) probeAll() {
	all := os.Getenv(soakEnv) != ""
	for i, form := range literalForms {
		if i%sampleInterval != 0 && !all {
			continue
		}
		p.probe(form, "{%d}", fmt.Sprintf("wait%d", i))
		p.probe(form, "{%d+}", fmt.Sprintf("push%d", i))
	}
	p.close()
}

// close ends the last session and waits until the audit log has all ends.
func (p *literalProber) close() {
	p.Helper()
	if p.c != nil {
		_ = p.c.Close()
	}
	testkit.Eventually(p, "all ends to be in the audit log", func() bool {
		return len(p.g.records("session_ended", p.user)) == p.sessions
	})
}

// probe sends a form whose literal contains a CREATE.
func (p *literalProber) probe(form, size, mailbox string) {
	p.Helper()
	before, after := cutForm(form)
	p.probeBetween(before, size, after, mailbox)
}

// probeBetween is probe with the parts before and after the literal.
func (p *literalProber) probeBetween(before, size, after, mailbox string) {
	p.Helper()
	if p.c == nil {
		p.open()
	}
	mustExec(p.T, p.c, "SELECT INBOX")
	pins := p.g.sumMetric("imapgate_mux_pins_total")
	payload := fmt.Sprintf("x1 CREATE %s\r\nx2 NOOP\r\n", mailbox)
	p.responses = nil
	p.write("f " + before + fmt.Sprintf(size, len(payload)) + "\r\n")
	if strings.Contains(size, "+") || p.until("f ", "* BAD") == "+" {
		p.write(payload + after + "\r\n")
	}
	if p.c != nil {
		p.write("DONE\r\nz NOOP\r\n")
		p.until("z ")
	}
	p.Logf("%q %s %q: %q", before, size, after, p.responses)
	if p.c != nil && p.g.sumMetric("imapgate_mux_pins_total") > pins { // a pinned session has no command records
		_ = p.c.Close()
		p.c = nil
	}
}

// cutForm splits a form at its L.
func cutForm(form string) (before, after string) {
	for i := len(form) - 1; i >= 0; i-- {
		if form[i] == 'L' && (i == len(form)-1 || strings.IndexByte(" )]", form[i+1]) >= 0) &&
			(i == 0 || form[i-1] < 'A' || 'Z' < form[i-1] || form == "NOOPL") {
			return form[:i], form[i+1:]
		}
	}
	return form, ""
}

func (p *literalProber) write(text string) {
	if _, err := io.WriteString(p.c, text); err != nil {
		p.Errorf("%q after %q: %v", text, p.responses, err)
	}
}

// until reads up to a response that begins with one of the prefixes or a continuation, and
// returns that beginning. It returns "" at the end of the session.
func (p *literalProber) until(prefixes ...string) string {
	p.Helper()
	for {
		r, err := p.c.Read()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.Errorf("after %q: %v", p.responses, err)
			}
			p.c = nil
			return ""
		}
		p.responses = append(p.responses, r.Text)
		for _, prefix := range append(prefixes, "+") {
			if strings.HasPrefix(r.Text, prefix) && (prefix != "+" || prefixes[0] != "z ") {
				return prefix
			}
		}
	}
}

// compare checks that the audit log has exactly the CREATEs that the backend has executed,
// with this result, and that no violation is counted.
func (p *literalProber) compare(executed map[string]bool, result string) {
	p.Helper()
	ofProbe := func(mailbox string) bool {
		return strings.HasPrefix(mailbox, "wait") || strings.HasPrefix(mailbox, "push")
	}
	maps.DeleteFunc(executed, func(mailbox string, _ bool) bool { return !ofProbe(mailbox) })
	recorded := map[string]bool{}
	for _, r := range p.g.records("command", p.user) {
		if r.Command == "CREATE" && r.Result == result && ofProbe(r.Mailbox) {
			recorded[r.Mailbox] = true
		}
	}
	if len(recorded) == 0 {
		p.Error("the audit log has no records")
	}
	if got, want := slices.Sorted(maps.Keys(executed)), slices.Sorted(maps.Keys(recorded)); !slices.Equal(got, want) {
		p.Errorf("the backend executed CREATE of %q, the audit log has %q", got, want)
	}
	for _, metric := range []string{"imapgate_backend_protocol_violations_total", "imapgate_mux_backend_spliced"} {
		if n := p.g.sumMetric(metric); n != 0 {
			p.Errorf("%s is %v", metric, n)
		}
	}
}
