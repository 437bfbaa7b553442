package tests

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/audit"
	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// literalForms are commands with a literal, for which L stands: in its place, where
// none belongs, in commands that take none, in commands that are malformed, and in
// commands that no table has. Constant.
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
	// What no table has, and what is no command.
	"FROB L", "X-FROB L", "XKILL a L", "FROB (L) y", "NOOP\tL", "L", "\"NOOP\" L", "(NOOP) L", "DONE L",
	// Literals that are none, because a string has begun and does not end.
	"LIST \"\" \"L", "NOOP \"L", "SEARCH SUBJECT \"a L", "SEARCH SUBJECT 5\" L", "CREATE \"a\\\" L", "FROB \"L", "APPEND \"INBOX L", "APPEND INBOX (\"a) L", "SELECT \"L",
}

// Whatever a client does with literals, a real Dovecot executes exactly the commands
// that are on record, and nothing counts against it.
func TestEveryCommandThatIsExecutedIsOnRecord(t *testing.T) {
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	for _, mode := range []mux.Mode{mux.Reuse, mux.Resume} {
		t.Run(string(mode), func(t *testing.T) {
			g := startFramed(t, mode, options{ca: backend.CA, commands: audit.AllCommands, backends: map[string]upstream.Config{
				only: {Address: backend.Plain, TLSMode: upstream.NoTLS},
			}})
			p := &prober{T: t, g: g, user: "lit." + string(mode)}
			p.open()
			if err := okay(p.c.Do("APPEND INBOX {}", []byte("Subject: x\r\n\r\nx\r\n"))); err != nil {
				t.Fatal(err)
			}
			for i, form := range literalForms {
				p.probe(form, "{%d}", fmt.Sprintf("wait%d", i))
				p.probe(form, "{%d+}", fmt.Sprintf("push%d", i))
			}
			_ = p.c.Close()
			testbed.Within(t, Patience, "all ends to be on record", func() bool {
				return len(g.records("session_ended", p.user)) == p.sessions
			})
			p.compare(mailboxesAt(t, backend, p.user))
		})
	}
}

// mailboxesAt are a user's mailboxes at Dovecot itself.
func mailboxesAt(t *testing.T, backend *testbed.Dovecot, user string) map[string]bool {
	t.Helper()
	c := enter(t, directly(backend)(t, user), "")
	mustSay(t, c, "LOGIN "+user+" "+password)
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

// prober sends forms, in one session after another.
type prober struct {
	*testing.T

	// Set once.
	g    *running
	user string

	// Owned by the test.
	c        *RawClient // nil: the last session has ended, or is pinned
	sessions int
	said     []string // since the form was sent
}

func (p *prober) open() {
	p.Helper()
	p.c = enter(p.T, p.g.at(proxy.NoTLS), "")
	p.sessions++
	mustSay(p.T, p.c, "LOGIN "+p.user+" "+password)
}

// probe sends a form whose literal holds a command that makes a mailbox.
func (p *prober) probe(form, size, mailbox string) {
	p.Helper()
	if p.c == nil {
		p.open()
	}
	mustSay(p.T, p.c, "SELECT INBOX")
	pins := p.g.metric("imapgate_mux_pins_total")
	payload := fmt.Sprintf("x1 CREATE %s\r\nx2 NOOP\r\n", mailbox)
	before, after := cutForm(form)
	p.said = nil
	p.write(fmt.Sprintf("f %s"+size+"\r\n", before, len(payload)))
	if strings.Contains(size, "+") || p.until("f ", "* BAD") == "+" {
		p.write(payload + after + "\r\n")
	}
	if p.c != nil {
		p.write("DONE\r\nz NOOP\r\n")
		p.until("z ")
	}
	p.Logf("%s"+size+"%s: %q", before, len(payload), after, p.said)
	if p.c != nil && p.g.metric("imapgate_mux_pins_total") > pins { // nothing in it is on record any more
		_ = p.c.Close()
		p.c = nil
	}
}

// cutForm takes the L out of a form.
func cutForm(form string) (before, after string) {
	for i := len(form) - 1; i >= 0; i-- {
		if form[i] == 'L' && (i == len(form)-1 || strings.IndexByte(" )]", form[i+1]) >= 0) &&
			(i == 0 || form[i-1] < 'A' || 'Z' < form[i-1] || form == "NOOPL") {
			return form[:i], form[i+1:]
		}
	}
	return form, ""
}

func (p *prober) write(text string) {
	if _, err := io.WriteString(p.c, text); err != nil {
		p.Errorf("%q after %q: %v", text, p.said, err)
	}
}

// until reads up to a response that begins with one of these, or that asks for a
// literal, and gives how it begins; "" is the end of the session.
func (p *prober) until(prefixes ...string) string {
	p.Helper()
	for {
		r, err := p.c.Read()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.Errorf("after %q: %v", p.said, err)
			}
			p.c = nil
			return ""
		}
		p.said = append(p.said, r.Text)
		for _, prefix := range append(prefixes, "+") {
			if strings.HasPrefix(r.Text, prefix) && (prefix != "+" || prefixes[0] != "z ") {
				return prefix
			}
		}
	}
}

// compare wants on record whatever was executed, and nothing else, and no complaint.
func (p *prober) compare(executed map[string]bool) {
	p.Helper()
	recorded := map[string]bool{"INBOX": true}
	for _, r := range p.g.records("command", p.user) {
		if r.Command == "CREATE" && r.Result == "ok" {
			recorded[r.Mailbox] = true
		}
	}
	if got, want := slices.Sorted(maps.Keys(executed)), slices.Sorted(maps.Keys(recorded)); !slices.Equal(got, want) {
		p.Errorf("Dovecot has made %q, on record are %q", got, want)
	}
	for _, metric := range []string{"imapgate_mux_invariant_total", "imapgate_mux_backend_spliced"} {
		if n := p.g.metric(metric); n != 0 {
			p.Errorf("%s is %v", metric, n)
		}
	}
}
