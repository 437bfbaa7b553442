package tests

import (
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

// testedModes are all modes, and one more in which every command needs an attach.
var testedModes = []string{"splice", "reuse", "resume", "detached"}

// modeEndpoint starts a gateway in a mode.
func modeEndpoint(t testing.TB, backend mailServer, mode string) endpointFunc {
	t.Helper()
	name, tune := event.Mode(mode), func(*config.Config) {}
	if mode == "detached" {
		name, tune = event.ModeResume, alwaysDetach
	}
	g := startTunedGateway(t, backend.Endpoints().CA, tune, singleBackend(backendConf(backend, event.ImplicitTLS)+muxMode(name, "")))
	return func(testing.TB, string) endpoint { return g.endpoint(event.ImplicitTLS) }
}

// A random script has the same responses and leaves the same mailboxes in every mode.
func TestAScriptEndsTheSameInEveryMode(t *testing.T) {
	t.Parallel()
	first, runs := testbed.Seed(t), uint64(testSize(2, 30))
	var users []string
	for i := range runs {
		for _, mode := range testedModes {
			users = append(users, fmt.Sprintf("%s%d", mode, first+i))
		}
	}
	backend := startMail(t, users...)
	endpoints := map[string]endpointFunc{}
	for _, mode := range testedModes {
		endpoints[mode] = modeEndpoint(t, backend, mode)
	}
	for i := range runs {
		seed := first + i
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			transcripts := make([][]string, len(testedModes))
			t.Run("in", func(t *testing.T) { // waits for its parallel subtests
				for i, mode := range testedModes {
					t.Run(mode, func(t *testing.T) {
						t.Parallel()
						a := &scriptedClient{T: t, user: fmt.Sprintf("%s%d", mode, seed), random: rand.New(rand.NewPCG(seed, 1))}
						a.client, a.observer = a.login(endpoints[mode]), a.login(directEndpoint(backend))
						a.run(testSize(80, 200))
						transcripts[i] = append(a.transcript, a.dumpMailboxes()...)
					})
				}
			})
			for i, mode := range testedModes[1:] {
				if d := diffTranscripts(transcripts[0], transcripts[i+1]); d != "" {
					t.Errorf("%s (+++) differs from %s (---):\n%s", mode, testedModes[0], d)
				}
			}
		})
	}
}

// scriptedClient plays a script. Its commands depend only on its random numbers, never on
// responses.
type scriptedClient struct {
	*testing.T

	// Set once.
	user             string
	random           *rand.Rand
	client, observer *RawClient

	// Owned by play.
	selected     string
	messageCount int
	transcript   []string // commands and the comparable parts of their tagged responses
}

func (a *scriptedClient) login(through endpointFunc) *RawClient {
	a.Helper()
	c := mustDial(a, through(a, a.user), "")
	if err := checkOK(c.Do("LOGIN " + a.user + " " + password)); err != nil {
		a.Fatal(err)
	}
	return c
}

// scriptMailboxes are the mailboxes of a script; some do not exist all the time.
var scriptMailboxes = []string{"INBOX", "Work", "Work/Plans", `"two parts"`, "&ANw-ber", "Deleted"}

// run sends n commands or pipelines.
func (a *scriptedClient) run(n int) {
	a.Helper()
	for _, name := range scriptMailboxes[1:5] {
		a.exec("CREATE " + name)
	}
	for range 5 {
		a.appendMessages("INBOX")
	}
	a.exec("SELECT INBOX")
	a.selected = "INBOX"
	for range n {
		switch roll := a.random.IntN(20); {
		case roll < 4:
			a.appendMessages(a.randomMailbox())
		case roll < 6:
			a.changeSelected()
		case roll < 7:
			a.runIdle()
		case roll < 10:
			a.runPipeline()
		default:
			a.exec(a.randomCommand())
		}
		// NOOP makes the server report every change of this step. Servers may report them at
		// different times, which would change the meaning of message numbers.
		a.exec("NOOP")
	}
	a.exec("CLOSE")
	a.exec("LOGOUT")
}

func (a *scriptedClient) randomMailbox() string {
	return scriptMailboxes[a.random.IntN(len(scriptMailboxes))]
}

// randomSet returns a few message numbers, which need not exist.
func (a *scriptedClient) randomSet() string {
	from := 1 + a.random.IntN(6)
	return []string{strconv.Itoa(from), fmt.Sprintf("%d:%d", from, from+2), fmt.Sprintf("1,%d", from), "*", "2:*"}[a.random.IntN(5)]
}

// randomCommand returns a command of one line that does not change the selected mailbox.
func (a *scriptedClient) randomCommand() string {
	flag := []string{`\Seen`, `\Flagged`, `\Deleted`, `\Answered`, "$Later", "blue"}[a.random.IntN(6)]
	lines := []string{
		"FETCH " + a.randomSet() + " (UID FLAGS)", "UID FETCH " + a.randomSet() + " (RFC822.SIZE)", "FETCH " + a.randomSet() + " BODY[TEXT]",
		"STORE " + a.randomSet() + " +FLAGS (" + flag + ")", "UID STORE " + a.randomSet() + " -FLAGS.SILENT (" + flag + ")",
		"STORE " + a.randomSet() + " FLAGS (" + flag + " $Set)", "COPY " + a.randomSet() + " " + a.randomMailbox(),
		"UID COPY " + a.randomSet() + " " + a.randomMailbox(), "MOVE " + a.randomSet() + " " + a.randomMailbox(),
		"UID EXPUNGE " + a.randomSet(), "EXPUNGE", "SEARCH " + flag[1:], "SEARCH DELETED", "UID SEARCH RETURN (COUNT) SEEN",
		"SORT (SUBJECT) UTF-8 ALL", "NOOP", "CHECK", "STATUS " + a.randomMailbox() + " (MESSAGES UIDNEXT)",
		`LIST "" *`, `LSUB "" *`, "SUBSCRIBE " + a.randomMailbox(), "UNSUBSCRIBE " + a.randomMailbox(), "NAMESPACE", "CAPABILITY",
		"GETQUOTAROOT INBOX", "FETCH 0 FLAGS", "FETCH", "RENAME Deleted Elsewhere",
	}
	return lines[a.random.IntN(len(lines))]
}

// changeSelected sends a command that selects or closes a mailbox, or one with literals.
func (a *scriptedClient) changeSelected() {
	a.Helper()
	name := a.randomMailbox()
	switch a.random.IntN(8) {
	case 0:
		a.exec("EXAMINE " + name)
	case 1:
		a.exec("SELECT {}", []byte(strings.Trim(name, `"`)))
	case 2:
		a.exec("SELECT {+}", []byte(strings.Trim(name, `"`)))
	case 3:
		a.exec("UNSELECT")
		a.exec("SELECT INBOX")
		name = "INBOX"
	case 4:
		a.exec("CLOSE")
		a.exec("SELECT " + name + " (CONDSTORE)")
	case 5:
		a.exec("SEARCH CHARSET UTF-8 OR SUBJECT {} TEXT {+}", []byte("letter 1"), []byte("about"))
		return
	case 6:
		a.exec("STATUS {+} (UIDVALIDITY)", []byte("Nowhere"))
		return
	default:
		a.exec("SELECT " + name)
	}
	a.selected = name
	if name == "Deleted" {
		a.selected = ""
	}
}

// appendMessages appends messages with literals of every kind.
func (a *scriptedClient) appendMessages(name string) {
	a.Helper()
	a.messageCount++
	message := messageOfSize(300+a.random.IntN(3000), fmt.Sprint("letter ", a.messageCount))
	switch a.random.IntN(5) {
	case 0:
		a.exec("APPEND "+name+` (\Seen) {}`, message)
	case 1:
		a.exec("APPEND "+name+" ~{}", message) // RFC 3516
	case 2:
		a.exec("APPEND "+name+" {+} (blue) {}", message, message) // RFC 3502
	case 3:
		a.exec("APPEND {} {+}", []byte(strings.Trim(name, `"`)), message)
	default:
		a.exec("APPEND "+name+" {+}", message)
	}
}

// runIdle runs IDLE. If INBOX is selected, it waits for a new message.
func (a *scriptedClient) runIdle() {
	a.Helper()
	tag, err := a.client.Send("IDLE")
	if err == nil {
		_, err = a.awaitResponse("+")
	}
	if err == nil && a.selected == "INBOX" {
		a.messageCount++
		if err = checkOK(a.observer.Do("APPEND INBOX {+}", newMessage(fmt.Sprint("letter ", a.messageCount)))); err == nil {
			_, err = a.awaitResponse(" EXISTS")
		}
	}
	if err != nil {
		a.Fatalf("IDLE: %v", err)
	}
	if _, err := io.WriteString(a.client, "DONE\r\n"); err != nil {
		a.Fatal(err)
	}
	a.readAnswer("IDLE", tag)
}

func (a *scriptedClient) awaitResponse(what string) (Response, error) {
	for {
		r, err := a.client.Read()
		if err != nil || strings.Contains(r.Text, what) {
			return r, err
		}
	}
}

// renumberingCommand matches the commands that add or remove messages.
var renumberingCommand = regexp.MustCompile(`COPY|MOVE|EXPUNGE`)

// runPipeline sends several commands at once.
func (a *scriptedClient) runPipeline() {
	a.Helper()
	var all strings.Builder
	var lines []string
	for range 2 + a.random.IntN(5) {
		line := a.randomCommand()
		fmt.Fprintf(&all, "p%d %s\r\n", len(lines), line)
		lines = append(lines, line)
		if renumberingCommand.MatchString(line) {
			break // after it, numbers are ambiguous (RFC 9051 §5.5)
		}
	}
	if _, err := io.WriteString(a.client, all.String()); err != nil {
		a.Fatal(err)
	}
	// A server may respond in another order (RFC 9051 §5.5).
	answers := make([]Response, len(lines))
	for left := len(lines); left > 0; {
		r, err := a.client.Read()
		if err != nil {
			a.Fatalf("%s: %v", all.String(), err)
		}
		var n int
		if _, err := fmt.Sscanf(r.Text, "p%d ", &n); err == nil && n < len(answers) {
			answers[n] = r
			left--
		}
	}
	for i, line := range lines {
		a.recordAnswer(line, answers[i:i+1])
	}
}

// exec sends a command and records its response.
func (a *scriptedClient) exec(command string, literals ...[]byte) {
	a.Helper()
	got, err := a.client.Do(command, literals...)
	if err != nil {
		a.Fatalf("%s, after\n%s\n%v", command, strings.Join(a.transcript[max(0, len(a.transcript)-10):], "\n"), err)
	}
	a.recordAnswer(command, got)
}

func (a *scriptedClient) readAnswer(command, tag string) {
	a.Helper()
	got, err := a.client.ReadUntil(tag)
	if err != nil {
		a.Fatalf("%s, after\n%s\n%v", command, strings.Join(a.transcript[max(0, len(a.transcript)-10):], "\n"), err)
	}
	a.recordAnswer(command, got)
}

// taggedStatus matches the comparable part of a tagged response: OK, NO or BAD, and the
// name of the code.
var taggedStatus = regexp.MustCompile(`^\S+ ((?:OK|NO|BAD)(?: \[[A-Z-]+)?)`)

func (a *scriptedClient) recordAnswer(command string, got []Response) {
	m := taggedStatus.FindStringSubmatch(got[len(got)-1].Text)
	if m == nil {
		a.Fatalf("%s was answered %v", command, got)
	}
	// For numbers without a message servers send either.
	status := strings.Replace(m[1], "NO [EXPUNGEISSUED", "BAD", 1)
	a.transcript = append(a.transcript, command+" -> "+status)
}

// dumpMailboxes returns the complete content of the user's mailboxes.
func (a *scriptedClient) dumpMailboxes() (all []string) {
	a.Helper()
	commands := []string{`LIST "" *`, `LSUB "" *`}
	for _, name := range slices.Concat(scriptMailboxes, []string{"Elsewhere"}) {
		commands = append(commands, "EXAMINE "+name,
			"FETCH 1:* (UID FLAGS RFC822.SIZE BODY.PEEK[HEADER.FIELDS (SUBJECT)])", "UNSELECT")
	}
	for _, command := range commands {
		got, err := a.observer.Do(command)
		if err != nil {
			a.Fatal(err)
		}
		var lines []string
		for _, r := range got {
			if !variableResponse.MatchString(r.Text) {
				line := listMark.ReplaceAllString(recentFlag.ReplaceAllString(r.String(), ""), "")
				lines = append(lines, flagList.ReplaceAllStringFunc(line, sortFlags))
			}
		}
		slices.Sort(lines) // the order of LIST is undefined
		all = append(append(all, command), lines...)
	}
	return all
}

// variableResponse matches responses that differ between two accounts.
var variableResponse = regexp.MustCompile(`^\* OK \[(?:UIDVALIDITY|HIGHESTMODSEQ|MAILBOXID|CLOSED)|^\* \d+ RECENT|^a\d+ `)

// listMark matches \Marked and \Unmarked, which depend on the time of LIST.
var listMark = regexp.MustCompile(` ?\\(?:Un)?[Mm]arked`)

// flagList matches flags, whose order is undefined.
var flagList = regexp.MustCompile(`FLAGS \([^)]*`)

func sortFlags(flags string) string {
	words := strings.Fields(strings.ReplaceAll(flags, "(", "( "))
	slices.Sort(words)
	return strings.Join(words, " ")
}
