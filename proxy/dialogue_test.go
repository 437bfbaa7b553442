package proxy

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// A dialogue is a title ("# Sentence.") and lines, up to the next title:
//
//	ON KIND…     the kinds of connection it is played on; all three when it is missing
//	C TEXT       the client sends TEXT and CRLF
//	C! "TEXT"    the client sends TEXT, a Go string, alone
//	C-TLS        the client starts TLS
//	P TEXT       the gateway answers TEXT; … matches anything
//	END          the gateway closes the client's connection without another line
//	U-LOGIN AUTHZID USER PASSWORD   the gateway logs in upstream; - is an empty value
//	B-LOGIN TEXT the backend answers that login
//	U TEXT       the gateway sends TEXT upstream
//	B TEXT       the backend sends TEXT
//	B-END, U-END the backend, or the gateway, closes the upstream connection
//	A EVENT K=V… the records of the audit log, all of them in order
//
// A connection starts after its greeting, and after TLS if the kind has it, unless the
// dialogue is played on "fresh-…". "clear" is STARTTLS before TLS.
type dialogue struct {
	title string
	kinds []string
	lines []string
}

func readDialogues(t *testing.T, file string) []dialogue {
	t.Helper()
	text, err := os.ReadFile(file)
	testkit.NoError(t, err)
	var all []dialogue
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch verb, rest, _ := strings.Cut(line, " "); {
		case line == "":
		case verb == "#":
			all = append(all, dialogue{title: strings.TrimSuffix(rest, "."), kinds: []string{"none", "starttls", "implicit"}})
		case len(all) == 0:
			t.Fatalf("%s: a line before the first title", file)
		case verb == "ON":
			all[len(all)-1].kinds = strings.Fields(rest)
		default:
			all[len(all)-1].lines = append(all[len(all)-1].lines, line)
		}
	}
	return all
}

// splits are the ways to split the client's bytes into writes.
var splits = map[string]func(rng *rand.Rand, left int) int{
	"whole":  func(_ *rand.Rand, left int) int { return left },
	"bytes":  func(*rand.Rand, int) int { return 1 },
	"random": func(rng *rand.Rand, left int) int { return 1 + rng.IntN(min(left, 40)) },
}

func TestDialogues(t *testing.T) {
	checkLeaks(t)
	files, err := filepath.Glob("testdata/*.txt")
	testkit.NoError(t, err)
	if len(files) == 0 {
		t.Fatal("no dialogues")
	}
	seed := testbed.Seed(t)
	var playing sync.WaitGroup
	running := make(chan struct{}, 16) // t.Parallel allows only as many as there are cores, and denials are slow
	for _, file := range files {
		for _, d := range readDialogues(t, file) {
			for _, kind := range d.kinds {
				for cut := range splits {
					running <- struct{}{}
					playing.Go(func() {
						t.Run(fmt.Sprintf("%s/%s/%s/%s", filepath.Base(file), d.title, kind, cut), func(t *testing.T) {
							d.run(t, kind, cut, seed)
						})
						<-running
					})
				}
			}
		}
	}
	playing.Wait()
}

// dialogueRunner plays the client and the backend of a dialogue.
type dialogueRunner struct {
	*client
	backend   *scriptedBackend
	split     func(*rand.Rand, int) int
	rng       *rand.Rand
	pending   string // not yet sent by the client
	login     testkit.Login
	wantAudit []string // records expected so far
}

func (d dialogue) run(t *testing.T, kind, splitName string, seed uint64) {
	backend := openScriptedBackend(t)
	b := openHarness(t, backend.l.Addr().String())
	a := &dialogueRunner{backend: backend, split: splits[splitName], rng: rand.New(rand.NewPCG(seed, 0))} // for splits
	switch {
	case strings.HasPrefix(kind, "fresh-"):
		a.client = b.dial(kind[len("fresh-"):])
	case kind == "clear":
		a.client = b.dial("starttls")
		a.expectLine("* OK [CAPABILITY IMAP4rev1 LITERAL+ ID STARTTLS LOGINDISABLED] IMAP ready.")
	default:
		a.client = b.dialGreeted(kind)
	}
	for i, line := range d.lines {
		if err := a.step(line); err != nil {
			t.Fatalf("line %d, %s: %v\n%s", i+1, line, err, b.logs)
		}
	}
	a.flushClient()
	a.close()
	if a.backend.conn != nil {
		_, _ = io.Copy(io.Discard, a.backend.conn.R) // passes on the end from the gateway
		a.backend.closeConn()
	}
	testkit.Eventually(t, "the connection's end", func() bool { return b.server.openConns.Load() == 0 })
	b.stopServer()
	a.compareAudit()
}

func (a *dialogueRunner) step(line string) error {
	verb, text, _ := strings.Cut(line, " ")
	switch verb {
	case "C":
		a.pending += text + "\r\n"
		return nil
	case "C!":
		raw, err := strconv.Unquote(text)
		a.pending += raw
		return err
	case "A":
		a.wantAudit = append(a.wantAudit, text)
		return nil
	}
	a.flushClient()
	switch verb {
	case "C-TLS":
		a.startTLS()
	case "P":
		a.expectLine(text)
	case "END":
		a.expectEOF()
	case "U-LOGIN":
		return a.expectUpstreamLogin(text)
	case "B-LOGIN":
		return a.backend.backendConn().Send(a.login.Tag + " " + text)
	case "U":
		if got, err := a.backend.backendConn().ReadLine(); err != nil || !matchesPattern(text, got) {
			return fmt.Errorf("received %q, %w", got, cmp.Or(err, io.ErrShortBuffer))
		}
	case "B":
		return a.backend.backendConn().Send(text)
	case "B-END":
		a.backend.closeConn()
	case "U-END":
		if rest, err := io.ReadAll(a.backend.backendConn().R); err != nil || len(rest) > 0 {
			return fmt.Errorf("received %q, %w", rest, err)
		}
		a.backend.closeConn()
	default:
		return fmt.Errorf("no such verb")
	}
	return nil
}

// flushClient sends the client's pending bytes in the dialogue's splits.
func (a *dialogueRunner) flushClient() {
	for len(a.pending) > 0 {
		n := a.split(a.rng, len(a.pending))
		a.write(a.pending[:n])
		a.pending = a.pending[n:]
	}
}

func (a *dialogueRunner) expectUpstreamLogin(text string) (err error) {
	if a.login, err = a.backend.backendConn().ReadLogin(); err != nil {
		return err
	}
	got := fmt.Sprintf("%s %s %s", cmp.Or(a.login.AuthzID, "-"), a.login.User, a.login.Password)
	want, id, _ := strings.Cut(text, " ID ")
	if got != want || id != "" && !matchesPattern(id, a.login.ID) {
		return fmt.Errorf("login %q with %s", got, a.login.ID)
	}
	return nil
}

// compareAudit compares the audit log with the dialogue's records.
func (a *dialogueRunner) compareAudit() {
	a.t.Helper()
	var got []string
	records := a.harness.records()
	for _, r := range records {
		got = append(got, fmt.Sprint(r))
	}
	if len(records) != len(a.wantAudit) {
		a.t.Fatalf("%d audit records, want %q:\n%s", len(records), a.wantAudit, strings.Join(got, "\n"))
	}
	for i, want := range a.wantAudit {
		event, fields, _ := strings.Cut(want, " ")
		wrong := records[i].field("event") != event
		for _, f := range strings.Fields(fields) {
			name, value, _ := strings.Cut(f, "=")
			wrong = wrong || records[i].field(name) != value
		}
		if wrong {
			a.t.Errorf("audit record %d is %s, want %s", i+1, got[i], want)
		}
	}
}
