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

	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/mux"
	"imapgate/proxy/upstream"
)

// modes are all there are, with one more, in which every command needs an attach.
var modes = []string{"splice", string(mux.Reuse), string(mux.Resume), "detached"}

// through leads to a gateway of a mode.
func through(t testing.TB, backend mailServer, mode string) entrance {
	t.Helper()
	o := options{ca: backend.Where().CA, backends: map[string]upstream.Config{only: to(backend, upstream.ImplicitTLS)}}
	m := proxy.Mode{Name: mode, Mux: muxSettings()}
	if mode == "detached" {
		m.Name, m.Mux.AlwaysDetach = string(mux.Resume), true
	}
	o.modes = map[string]proxy.Mode{only: m}
	g := startGateway(t, o)
	return func(testing.TB, string) endpoint { return g.at(proxy.ImplicitTLS) }
}

// The same script, made up at random, has the same answers and leaves the same
// mailboxes behind, in whichever mode it is played.
func TestAScriptEndsTheSameInEveryMode(t *testing.T) {
	t.Parallel()
	first, runs := testbed.Seed(t), uint64(soaked(2, 30))
	var users []string
	for i := range runs {
		for _, mode := range modes {
			users = append(users, fmt.Sprintf("%s%d", mode, first+i))
		}
	}
	backend := startMail(t, users...)
	doors := map[string]entrance{}
	for _, mode := range modes {
		doors[mode] = through(t, backend, mode)
	}
	for i := range runs {
		seed := first + i
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			ends := make([][]string, len(modes))
			t.Run("in", func(t *testing.T) { // ends when all of it has
				for i, mode := range modes {
					t.Run(mode, func(t *testing.T) {
						t.Parallel()
						a := &actor{T: t, user: fmt.Sprintf("%s%d", mode, seed), random: rand.New(rand.NewPCG(seed, 1))}
						a.client, a.bystander = a.enter(doors[mode]), a.enter(directly(backend))
						a.play(soaked(80, 200))
						ends[i] = append(a.told, a.leaves()...)
					})
				}
			})
			for i, mode := range modes[1:] {
				if d := differ(ends[0], ends[i+1]); d != "" {
					t.Errorf("%s (+++) differs from %s (---):\n%s", mode, modes[0], d)
				}
			}
		})
	}
}

// actor plays a script. What it says depends on its random numbers alone, never
// on what it hears.
type actor struct {
	*testing.T

	// Set once.
	user              string
	random            *rand.Rand
	client, bystander *RawClient

	// Owned by play.
	selected string
	letters  int
	told     []string // commands and their tagged answers, as far as they must be the same
}

func (a *actor) enter(through entrance) *RawClient {
	a.Helper()
	c := enter(a, through(a, a.user), "")
	if err := okay(c.Do("LOGIN " + a.user + " " + password)); err != nil {
		a.Fatal(err)
	}
	return c
}

// mailboxes of the play; some are not always there.
var mailboxes = []string{"INBOX", "Work", "Work/Plans", `"two words"`, "&ANw-ber", "Gone"}

// play says n commands, or pipelines of them.
func (a *actor) play(n int) {
	a.Helper()
	for _, name := range mailboxes[1:5] {
		a.say("CREATE " + name)
	}
	for range 5 {
		a.append("INBOX")
	}
	a.say("SELECT INBOX")
	a.selected = "INBOX"
	for range n {
		switch roll := a.random.IntN(20); {
		case roll < 4:
			a.append(a.mailbox())
		case roll < 6:
			a.change()
		case roll < 7:
			a.idle()
		case roll < 10:
			a.pipeline()
		default:
			a.say(a.line())
		}
		// What the step has brought is told at the latest now: before, numbers mean
		// what a client has been told, and the servers may tell it at different times.
		a.say("NOOP")
	}
	a.say("CLOSE")
	a.say("LOGOUT")
}

func (a *actor) mailbox() string { return mailboxes[a.random.IntN(len(mailboxes))] }

// set is a few numbers, some of which may not be there.
func (a *actor) set() string {
	from := 1 + a.random.IntN(6)
	return []string{strconv.Itoa(from), fmt.Sprintf("%d:%d", from, from+2), fmt.Sprintf("1,%d", from), "*", "2:*"}[a.random.IntN(5)]
}

// line is a command of one line that changes nothing about what is selected.
func (a *actor) line() string {
	flag := []string{`\Seen`, `\Flagged`, `\Deleted`, `\Answered`, "$Later", "blue"}[a.random.IntN(6)]
	lines := []string{
		"FETCH " + a.set() + " (UID FLAGS)", "UID FETCH " + a.set() + " (RFC822.SIZE)", "FETCH " + a.set() + " BODY[TEXT]",
		"STORE " + a.set() + " +FLAGS (" + flag + ")", "UID STORE " + a.set() + " -FLAGS.SILENT (" + flag + ")",
		"STORE " + a.set() + " FLAGS (" + flag + " $Set)", "COPY " + a.set() + " " + a.mailbox(),
		"UID COPY " + a.set() + " " + a.mailbox(), "MOVE " + a.set() + " " + a.mailbox(),
		"UID EXPUNGE " + a.set(), "EXPUNGE", "SEARCH " + flag[1:], "SEARCH DELETED", "UID SEARCH RETURN (COUNT) SEEN",
		"SORT (SUBJECT) UTF-8 ALL", "NOOP", "CHECK", "STATUS " + a.mailbox() + " (MESSAGES UIDNEXT)",
		`LIST "" *`, `LSUB "" *`, "SUBSCRIBE " + a.mailbox(), "UNSUBSCRIBE " + a.mailbox(), "NAMESPACE", "CAPABILITY",
		"GETQUOTAROOT INBOX", "FETCH 0 FLAGS", "FETCH", "RENAME Gone Elsewhere",
	}
	return lines[a.random.IntN(len(lines))]
}

// change is a command about what is selected, or with literals.
func (a *actor) change() {
	a.Helper()
	name := a.mailbox()
	switch a.random.IntN(8) {
	case 0:
		a.say("EXAMINE " + name)
	case 1:
		a.say("SELECT {}", []byte(strings.Trim(name, `"`)))
	case 2:
		a.say("SELECT {+}", []byte(strings.Trim(name, `"`)))
	case 3:
		a.say("UNSELECT")
		a.say("SELECT INBOX")
		name = "INBOX"
	case 4:
		a.say("CLOSE")
		a.say("SELECT " + name + " (CONDSTORE)")
	case 5:
		a.say("SEARCH CHARSET UTF-8 OR SUBJECT {} TEXT {+}", []byte("letter 1"), []byte("about"))
		return
	case 6:
		a.say("STATUS {+} (UIDVALIDITY)", []byte("Nowhere"))
		return
	default:
		a.say("SELECT " + name)
	}
	a.selected = name
	if name == "Gone" {
		a.selected = ""
	}
}

// append stores messages, with literals of every kind.
func (a *actor) append(name string) {
	a.Helper()
	a.letters++
	letter := mailOf(300+a.random.IntN(3000), fmt.Sprint("letter ", a.letters))
	switch a.random.IntN(5) {
	case 0:
		a.say("APPEND "+name+` (\Seen) {}`, letter)
	case 1:
		a.say("APPEND "+name+" ~{}", letter) // RFC 3516
	case 2:
		a.say("APPEND "+name+" {+} (blue) {}", letter, letter) // RFC 3502
	case 3:
		a.say("APPEND {} {+}", []byte(strings.Trim(name, `"`)), letter)
	default:
		a.say("APPEND "+name+" {+}", letter)
	}
}

// idle idles, and if INBOX is selected, until it hears of a message.
func (a *actor) idle() {
	a.Helper()
	tag, err := a.client.Send("IDLE")
	if err == nil {
		_, err = a.await("+")
	}
	if err == nil && a.selected == "INBOX" {
		a.letters++
		if err = okay(a.bystander.Do("APPEND INBOX {+}", mail(fmt.Sprint("letter ", a.letters)))); err == nil {
			_, err = a.await(" EXISTS")
		}
	}
	if err != nil {
		a.Fatalf("IDLE: %v", err)
	}
	if _, err := io.WriteString(a.client, "DONE\r\n"); err != nil {
		a.Fatal(err)
	}
	a.hear("IDLE", tag)
}

func (a *actor) await(what string) (Response, error) {
	for {
		r, err := a.client.Read()
		if err != nil || strings.Contains(r.Text, what) {
			return r, err
		}
	}
}

// renumbers are the commands that bring or take messages.
var renumbers = regexp.MustCompile(`COPY|MOVE|EXPUNGE`)

// pipeline says several commands at once.
func (a *actor) pipeline() {
	a.Helper()
	var all strings.Builder
	var lines []string
	for range 2 + a.random.IntN(5) {
		line := a.line()
		fmt.Fprintf(&all, "p%d %s\r\n", len(lines), line)
		lines = append(lines, line)
		if renumbers.MatchString(line) {
			break // behind it, numbers would be ambiguous (RFC 9051 §5.5)
		}
	}
	if _, err := io.WriteString(a.client, all.String()); err != nil {
		a.Fatal(err)
	}
	// A server may answer them in another order (RFC 9051 §5.5).
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
		a.note(line, answers[i:i+1])
	}
}

// say is one command and its answer.
func (a *actor) say(command string, literals ...[]byte) {
	a.Helper()
	got, err := a.client.Do(command, literals...)
	if err != nil {
		a.Fatalf("%s, after\n%s\n%v", command, strings.Join(a.told[max(0, len(a.told)-10):], "\n"), err)
	}
	a.note(command, got)
}

func (a *actor) hear(command, tag string) {
	a.Helper()
	got, err := a.client.Until(tag)
	if err != nil {
		a.Fatalf("%s, after\n%s\n%v", command, strings.Join(a.told[max(0, len(a.told)-10):], "\n"), err)
	}
	a.note(command, got)
}

// verdict is the part of a tagged answer that must be the same: OK, NO or BAD and
// the name of the code.
var verdict = regexp.MustCompile(`^\S+ ((?:OK|NO|BAD)(?: \[[A-Z-]+)?)`)

func (a *actor) note(command string, got []Response) {
	m := verdict.FindStringSubmatch(got[len(got)-1].Text)
	if m == nil {
		a.Fatalf("%s was answered %v", command, got)
	}
	// Numbers that no message has, or has any more.
	told := strings.Replace(m[1], "NO [EXPUNGEISSUED", "BAD", 1)
	a.told = append(a.told, command+" -> "+told)
}

// leaves is all of what is in the user's mailboxes.
func (a *actor) leaves() (all []string) {
	a.Helper()
	commands := []string{`LIST "" *`, `LSUB "" *`}
	for _, name := range slices.Concat(mailboxes, []string{"Elsewhere"}) {
		commands = append(commands, "EXAMINE "+name,
			"FETCH 1:* (UID FLAGS RFC822.SIZE BODY.PEEK[HEADER.FIELDS (SUBJECT)])", "UNSELECT")
	}
	for _, command := range commands {
		got, err := a.bystander.Do(command)
		if err != nil {
			a.Fatal(err)
		}
		var lines []string
		for _, r := range got {
			if !changing.MatchString(r.Text) {
				line := listMark.ReplaceAllString(recentFlag.ReplaceAllString(r.String(), ""), "")
				lines = append(lines, flagList.ReplaceAllStringFunc(line, inOrder))
			}
		}
		slices.Sort(lines) // mailboxes are listed in any order
		all = append(append(all, command), lines...)
	}
	return all
}

// changing is what two accounts cannot have in common.
var changing = regexp.MustCompile(`^\* OK \[(?:UIDVALIDITY|HIGHESTMODSEQ|MAILBOXID|CLOSED)|^\* \d+ RECENT|^a\d+ `)

// listMark is what LIST says of news in a mailbox, which depends on when it looks.
var listMark = regexp.MustCompile(` ?\\(?:Un)?[Mm]arked`)

// flagList is flags, of which the order means nothing.
var flagList = regexp.MustCompile(`FLAGS \([^)]*`)

func inOrder(flags string) string {
	words := strings.Fields(strings.ReplaceAll(flags, "(", "( "))
	slices.Sort(words)
	return strings.Join(words, " ")
}
