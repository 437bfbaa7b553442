package mux

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/audit"
	"imapgate/internal/event"
	"imapgate/internal/testkit"
)

// auditRecord is the record of a command, as programs read it.
type auditRecord struct {
	Event, Session, User, Backend string
	Command, Mailbox, To          string
	Messages, Bytes               int
	Literals                      []int
	More                          int `json:"literals_more"`
	Result, Code                  string
	Took                          *int `json:"duration_ms"`
}

// summary returns the fields that differ between records:
//
//	VERB in:MAILBOX to:MAILBOX n:MESSAGES {SIZE SIZE +MORE} RESULT CODE
func (r auditRecord) summary() string {
	text := r.Command
	if r.Mailbox != "" {
		text += " in:" + r.Mailbox
	}
	if r.To != "" {
		text += " to:" + r.To
	}
	if r.Messages > 0 {
		text += fmt.Sprint(" n:", r.Messages)
	}
	if r.Literals != nil {
		sizes := strings.Trim(fmt.Sprint(r.Literals), "[]")
		if r.More > 0 {
			sizes += fmt.Sprint(" +", r.More)
		}
		text += " {" + sizes + "}"
	}
	return strings.TrimSpace(text + " " + r.Result + " " + r.Code)
}

// auditedCommands returns the records of commands, once the audit log is closed.
func (h *harness) auditedCommands() (all []auditRecord) {
	h.t.Helper()
	text, err := os.ReadFile(h.auditPath)
	testkit.NoError(h.t, err)
	for line := range strings.Lines(string(text)) {
		var r auditRecord
		testkit.NoError(h.t, json.Unmarshal([]byte(line), &r))
		if r.Event != "command" {
			continue
		}
		if r.Session != "s-1" || r.User != user || r.Backend != "stub" && r.Backend != "west" || r.Took == nil {
			h.t.Errorf("a record lacks its owner: %s", line)
		}
		all = append(all, r)
	}
	return all
}

// countAnswers counts the answers to commands in what a client receives. An invalid
// command has no record.
func countAnswers(received string) int {
	n := 0
	for _, answer := range answerPattern.FindAllString(received, -1) {
		if !strings.HasSuffix(answer, " BAD Invalid command.") {
			n++
		}
	}
	return n
}

var answerPattern = regexp.MustCompile(`(?m)^[^\s*+]\S* (?:OK|NO|BAD) [^\r\n]*`)

// checkRecords requires the records that the dialogue lists, and one record for each
// answer that the client received.
func (p *dialogueRun) checkRecords() {
	p.harness.t.Helper()
	var recorded []string
	answered := 0
	for _, r := range p.auditedCommands() {
		recorded = append(recorded, r.summary())
		if r.Result != string(event.ResultAborted) {
			answered++
		}
	}
	unreceived := answered - p.answerCount
	if p.spliceReason == "" && unreceived != 0 && !(p.clientLeft && unreceived > 0) { // an answer may go to a client that is gone
		p.harness.t.Errorf("%d answers, and recorded are %q", p.answerCount, recorded)
	}
	if p.wantRecords == nil {
		return
	}
	recorded = slices.DeleteFunc(recorded, func(r string) bool {
		return strings.HasPrefix(r, "SELECT ") || strings.HasPrefix(r, "LOGOUT ")
	})
	if !slices.Equal(recorded, p.wantRecords) {
		p.harness.t.Errorf("recorded are %q, want %q", recorded, p.wantRecords)
	}
}

// checkHidden requires that no output for the operator contains hiddenText.
func (p *dialogueRun) checkHidden() {
	auditLog, err := os.ReadFile(p.auditPath)
	testkit.NoError(p.harness.t, err)
	output := fmt.Sprintf("%v %s %s", p.result.Err, p.logs, auditLog)
	if p.hiddenText != "" && strings.Contains(strings.ToLower(output), strings.ToLower(p.hiddenText)) {
		p.harness.t.Errorf("%q appears in %s", p.hiddenText, output)
	}
}

// canary stands for private content of clients and backends.
const canary = "c4n4ry"

// tableCase is a command of the table as a client sends it, the steps that follow unless
// the backend simply answers OK, and its record.
type tableCase struct {
	line   string
	steps  string // "C line", "U …": all steps, one a line; "" for the default
	record string
}

// localSteps are the steps of commands that the gateway answers.
const localSteps = "C\nP a …"

// tableCases has each command of the table. Constant.
var tableCases = []tableCase{
	{"CAPABILITY", "C\nP * CAPABILITY…\nP a OK …", "CAPABILITY ok"},
	{"NOOP", "", "NOOP in:INBOX ok DONE"},
	{"ID (\"c4n4ry\" \"c4n4ry\")", "C\nP * ID …\nP a OK …", "ID ok"},
	{"LANGUAGE c4n4ry", "", "LANGUAGE ok DONE"},
	{"COMPARATOR c4n4ry", "", "COMPARATOR ok DONE"},
	{"LOGOUT", "C\nP * BYE …\nP a OK …", "LOGOUT ok"},
	{"STARTTLS", localSteps, "STARTTLS bad"},
	{"LOGIN c4n4ry c4n4ry", localSteps, "LOGIN bad"},
	{"AUTHENTICATE PLAIN c4n4ry", localSteps, "AUTHENTICATE bad"},
	{"COMPRESS c4n4ry", localSteps, "COMPRESS bad"},
	{"UNAUTHENTICATE", localSteps, "UNAUTHENTICATE bad"},
	{"ENABLE c4n4ry", "", "ENABLE ok DONE"},
	{"IDLE", "C\nP + idling\nU ~i IDLE\nB + go\nC! \"DONE\\r\\n\"\nU DONE\nB ~i OK\nP a OK …", "IDLE in:INBOX ok"},
	{"SELECT Box (X-c4n4ry)", "", "SELECT in:Box ok DONE"},
	{"EXAMINE Box", "", "EXAMINE in:Box ok DONE"},
	{"CREATE Box (USE (c4n4ry))", "", "CREATE in:Box ok DONE"},
	{"DELETE Box", "", "DELETE in:Box ok DONE"},
	{"RENAME Box \"New box\"", "", "RENAME in:Box to:New box ok DONE"},
	{"SUBSCRIBE iNBOX", "", "SUBSCRIBE in:INBOX ok DONE"},
	{"UNSUBSCRIBE \"a\\\\b\"", "", "UNSUBSCRIBE in:a\\b ok DONE"},
	{"LIST c4n4ry c4n4ry", "", "LIST ok DONE"},
	{"LSUB c4n4ry c4n4ry", "", "LSUB ok DONE"},
	{"XLIST c4n4ry c4n4ry", "", "XLIST ok DONE"},
	{"RLIST c4n4ry c4n4ry", "", "RLIST ok DONE"},
	{"RLSUB c4n4ry c4n4ry", "", "RLSUB ok DONE"},
	{"NAMESPACE", "", "NAMESPACE ok DONE"},
	{"STATUS Box (MESSAGES)", "", "STATUS in:Box ok DONE"},
	{"APPEND Box (c4n4ry) {6+}", "C! \"a APPEND Box (c4n4ry) {6+}\\r\\nc4n4ry\\r\\n\"\nU! \"a APPEND Box (c4n4ry) {6+}\\r\\nc4n4ry\\r\\n\"\n" + doneSteps,
		"APPEND in:Box {6} ok DONE"},
	{"GETACL Box", "", "GETACL in:Box ok DONE"},
	{"SETACL Box c4n4ry lrs", "", "SETACL in:Box ok DONE"},
	{"DELETEACL Box c4n4ry", "", "DELETEACL in:Box ok DONE"},
	{"LISTRIGHTS Box c4n4ry", "", "LISTRIGHTS in:Box ok DONE"},
	{"MYRIGHTS Box", "", "MYRIGHTS in:Box ok DONE"},
	{"GETQUOTA c4n4ry", "", "GETQUOTA ok DONE"},
	{"GETQUOTAROOT Box", "", "GETQUOTAROOT in:Box ok DONE"},
	{"SETQUOTA c4n4ry (STORAGE 512)", "", "SETQUOTA ok DONE"},
	{"GETMETADATA Box c4n4ry", "", "GETMETADATA in:Box ok DONE"},
	{"SETMETADATA Box (/private/c4n4ry \"c4n4ry\")", "", "SETMETADATA in:Box ok DONE"},
	{"GETANNOTATION Box c4n4ry c4n4ry", "", "GETANNOTATION in:Box ok DONE"},
	{"SETANNOTATION Box c4n4ry (c4n4ry c4n4ry)", "", "SETANNOTATION in:Box ok DONE"},
	{"GENURLAUTH c4n4ry INTERNAL", "", "GENURLAUTH ok DONE"},
	{"URLFETCH c4n4ry", "", "URLFETCH ok DONE"},
	{"RESETKEY Box c4n4ry", "", "RESETKEY in:Box ok DONE"},
	{"GETJMAPACCESS", "", "GETJMAPACCESS ok DONE"},
	{"XAPPLEPUSHSERVICE c4n4ry", "", "XAPPLEPUSHSERVICE ok DONE"},
	{"CONVERSIONS c4n4ry c4n4ry", "", "CONVERSIONS ok DONE"},
	{"NOTIFY SET (c4n4ry (MessageNew))", "", "NOTIFY ok DONE"},
	{"CANCELUPDATE \"c4n4ry\"", "", "CANCELUPDATE ok DONE"},
	{"ESEARCH IN (personal) TEXT c4n4ry", "", "ESEARCH ok DONE"},
	{"CHECK", "", "CHECK in:INBOX ok DONE"},
	{"CLOSE", "", "CLOSE in:INBOX ok DONE"},
	{"UNSELECT", "", "UNSELECT in:INBOX ok DONE"},
	{"EXPUNGE", "", "EXPUNGE in:INBOX ok DONE"},
	{"UID EXPUNGE 1:2", "", "UID EXPUNGE in:INBOX n:2 ok DONE"},
	{"FETCH 2:* (BODY[HEADER.FIELDS (c4n4ry)])", "", "FETCH in:INBOX n:2 ok DONE"},
	{"UID FETCH 1:* (FLAGS)", "", "UID FETCH in:INBOX n:3 ok DONE"},
	{"STORE 1,3 +FLAGS (c4n4ry)", "", "STORE in:INBOX n:2 ok DONE"},
	{"UID STORE 1 +FLAGS.SILENT c4n4ry", "", "UID STORE in:INBOX n:1 ok DONE"},
	{"COPY 1:3 Box", "", "COPY in:INBOX to:Box n:3 ok DONE"},
	{"UID COPY 1:3 \"B\u2028x\"", "", "UID COPY in:INBOX to:B\\u{2028}x n:3 ok DONE"},
	{"MOVE 1 Box", "", "MOVE in:INBOX to:Box n:1 ok DONE"},
	{"UID MOVE 2:* Box", "", "UID MOVE in:INBOX to:Box ok DONE"}, // * is unknown at that time
	{"REPLACE 1 Box (c4n4ry) {6+}", "C! \"a REPLACE 1 Box (c4n4ry) {6+}\\r\\nc4n4ry\\r\\n\"\nU a REPLACE 1 Box (c4n4ry) {6}\nB + go\nU! \"c4n4ry\\r\\n\"\n" + doneSteps,
		"REPLACE in:INBOX to:Box n:1 {6} ok DONE"},
	{"UID REPLACE 1 Box {6+}", "C! \"a UID REPLACE 1 Box {6+}\\r\\nc4n4ry\\r\\n\"\nU a UID REPLACE 1 Box {6}\nB + go\nU! \"c4n4ry\\r\\n\"\n" + doneSteps,
		"UID REPLACE in:INBOX to:Box n:1 {6} ok DONE"},
	{"SEARCH TEXT c4n4ry", "", "SEARCH in:INBOX ok DONE"},
	{"UID SEARCH TEXT {6+}", "C! \"a UID SEARCH TEXT {6+}\\r\\nc4n4ry\\r\\n\"\nU a UID SEARCH TEXT {6}\nB + go\nU! \"c4n4ry\\r\\n\"\n" + doneSteps,
		"UID SEARCH in:INBOX {6} ok DONE"},
	{"SORT (DATE) UTF-8 TEXT c4n4ry", "", "SORT in:INBOX ok DONE"},
	{"UID SORT (DATE) UTF-8 TEXT c4n4ry", "", "UID SORT in:INBOX ok DONE"},
	{"THREAD REFERENCES UTF-8 TEXT c4n4ry", "", "THREAD in:INBOX ok DONE"},
	{"UID THREAD REFERENCES UTF-8 TEXT c4n4ry", "", "UID THREAD in:INBOX ok DONE"},
	{"CONVERT 1 c4n4ry", "", "CONVERT in:INBOX n:1 ok DONE"},
	{"UID CONVERT 1 c4n4ry", "", "UID CONVERT in:INBOX n:1 ok DONE"},
	{"UIDBATCHES 500", "", "UIDBATCHES in:INBOX ok DONE"},
}

// doneSteps are the backend's answer and its relay.
const doneSteps = "B a OK [DONE c4n4ry] c4n4ry\nP a OK [DONE c4n4ry] c4n4ry"

// run sends a command on the n-th upstream connection, with a mailbox selected.
func (s tableCase) run(p *dialogueRun, n int) error {
	if err := p.selectInbox(n); err != nil {
		return err
	}
	steps := s.steps
	if steps == "" {
		steps = "C\nU a " + s.line + "\n" + doneSteps
	}
	for step := range strings.SplitSeq(steps, "\n") {
		switch {
		case step == "C":
			step = "C a " + s.line
		case step[0] == 'U' || step[0] == 'B':
			step = fmt.Sprintf("%c%d%s", step[0], n, step[1:])
		}
		if err := p.step(step); err != nil {
			return fmt.Errorf("%q: %w", step, err)
		}
	}
	return nil
}

// selectInbox selects INBOX with three messages on the n-th upstream connection.
func (p *dialogueRun) selectInbox(n int) error {
	steps := []string{"C s SELECT INBOX", fmt.Sprintf("U%d s SELECT INBOX", n)}
	lines := append(selectLines("3", "4", "7"), "s OK [READ-WRITE] Select completed.")
	for _, side := range []string{fmt.Sprintf("B%d ", n), "P "} {
		for _, line := range lines {
			steps = append(steps, side+line)
		}
	}
	return p.runSteps(steps)
}

// tableRows returns the table's commands, and whether each may change something.
func tableRows(t *testing.T) map[string]bool {
	t.Helper()
	text, err := os.ReadFile("command/table.go")
	testkit.NoError(t, err)
	all := map[string]bool{}
	for _, row := range regexp.MustCompile(`\{Name: "([A-Z, ]+)",( Writes: true)?`).FindAllStringSubmatch(string(text), -1) {
		for name := range strings.SplitSeq(row[1], ", ") {
			all[name] = row[2] != ""
		}
	}
	return all
}

func TestEveryCommandOfTheTableIsAuditedWithoutItsContent(t *testing.T) {
	table := tableRows(t)
	for _, c := range tableCases {
		if _, there := table[c.verb()]; !there {
			t.Errorf("there is no command %s", c.verb())
		}
	}
	if len(tableCases) != len(table) {
		t.Errorf("%d commands are sent, of %d", len(tableCases), len(table))
	}
	for _, which := range []audit.CommandFilter{audit.AllCommands, audit.WriteCommands, audit.NoCommands} {
		t.Run(string(which), func(t *testing.T) {
			h := newHarness(t, setup{mode: event.ModeReuse, auditCommands: which}, nil)
			var clients []*testClient
			var want []string
			for i, c := range tableCases {
				p := &dialogueRun{splitMode: "whole", tags: map[string]string{}, harness: h, testClient: h.logIn()}
				clients = append(clients, p.testClient)
				if err := c.run(p, i+1); err != nil {
					t.Fatalf("%s: %v", c.line, err)
				}
				p.scriptedConn.queueClose()
				h.awaitEnd(p.testClient)
				if which == audit.AllCommands {
					want = append(want, "SELECT in:INBOX ok READ-WRITE", c.record)
				} else if which == audit.WriteCommands && table[c.verb()] {
					want = append(want, c.record)
				}
			}
			h.close(clients...)
			h.stub.close()
			h.expectRecords(want)
		})
	}
}

// verb returns the command's name.
func (s tableCase) verb() string {
	verb, rest, _ := strings.Cut(s.line, " ")
	if verb == "UID" {
		second, _, _ := strings.Cut(rest, " ")
		verb += " " + second
	}
	return verb
}

// expectRecords requires these commands in the audit log, and no canary.
func (h *harness) expectRecords(want []string) {
	h.t.Helper()
	var got []string
	for _, r := range h.auditedCommands() {
		got = append(got, r.summary())
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			h.t.Fatalf("record %d is %q, want %q", i+1, got[i:min(i+1, len(got))], want[i:min(i+1, len(want))])
		}
	}
	text, err := os.ReadFile(h.auditPath)
	testkit.NoError(h.t, err)
	if strings.Contains(strings.ToLower(string(text)), canary) {
		h.t.Errorf("private content is recorded:\n%s", text)
	}
}
