package tests

import (
	"bufio"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// scriptedBackend is a backend with scripted responses and one message in INBOX.
type scriptedBackend struct {
	// Set once.
	caps    string
	answers map[string]string // by the beginning of the command; TAG stands for its tag
	abort   chan struct{}     // closed: answers without a tag end with the connection

	mu       sync.Mutex
	commands []string // Guarded by mu. Lines received, those of the login included.
}

func (b *scriptedBackend) serve(conn *testkit.Conn) {
	r, w := conn.R, bufio.NewWriter(conn)
	_, _ = w.WriteString("* OK [CAPABILITY " + b.caps + "] ready\r\n") // Flush has the error
	for w.Flush() == nil {
		command, err := b.readCommand(r, w)
		if err != nil {
			return
		}
		tag, rest, _ := strings.Cut(command, " ")
		answer := ""
		for beginning, a := range b.answers {
			if strings.HasPrefix(rest, beginning) {
				answer = a
			}
		}
		switch {
		case answer != "":
			_, _ = w.WriteString(strings.ReplaceAll(answer, "TAG", tag))
			if !strings.Contains(answer, "TAG") && w.Flush() == nil {
				<-b.abort
				return
			}
			continue
		case strings.HasPrefix(rest, "AUTHENTICATE"), strings.HasPrefix(rest, "LOGIN"):
			tag += " OK [CAPABILITY " + b.caps + "] in\r\n"
		case strings.HasPrefix(rest, "SELECT"):
			_, _ = w.WriteString("* 1 EXISTS\r\n* OK [UIDVALIDITY 1] valid\r\n* OK [UIDNEXT 2] next\r\n")
			tag += " OK [READ-WRITE] done\r\n"
		case rest == "FETCH 1:1 (UID)":
			_, _ = w.WriteString("* 1 FETCH (UID 1)\r\n")
			tag += " OK done\r\n"
		default:
			tag += " OK done\r\n"
		}
		_, _ = w.WriteString(tag)
	}
}

// nonSyncLiteralEnd matches a line that announces a non-synchronizing literal.
var nonSyncLiteralEnd = regexp.MustCompile(`\{(\d+)\+\}\r\n$`)

// readCommand reads one command and sends continuations for its literals. It treats a
// non-synchronizing literal as commands, unless it is small and the backend has LITERAL-.
func (b *scriptedBackend) readCommand(r *bufio.Reader, w *bufio.Writer) (command string, err error) {
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return "", err
		}
		b.mu.Lock()
		b.commands = append(b.commands, line)
		b.mu.Unlock()
		command += strings.TrimSuffix(line, "\r\n")
		size, ok := literalSize(strings.TrimSuffix(line, "\r\n"))
		if m := nonSyncLiteralEnd.FindStringSubmatch(line); m != nil && strings.Contains(b.caps, "LITERAL-") && len(m[1]) < 4 {
			size, _ = strconv.Atoi(m[1]) // digits
			ok = true
		} else if ok {
			_, _ = w.WriteString("+ go\r\n") // Flush has the error
		}
		if !ok {
			return command, nil
		}
		if err := w.Flush(); err != nil {
			return "", err
		}
		literal := make([]byte, size)
		if _, err := io.ReadFull(r, literal); err != nil {
			return "", err
		}
	}
}

// startSelected starts a gateway with this backend and a client with INBOX selected.
func (b *scriptedBackend) startSelected(t *testing.T, mode event.Mode) (*gateway, *RawClient) {
	t.Helper()
	if b.caps == "" {
		b.caps = "IMAP4rev1 SASL-IR AUTH=PLAIN UNSELECT"
	}
	backend := plainBackend(testkit.StartIMAP(t, b.serve).Addr()) + muxMode(mode, ", command_hold_timeout: 1s")
	g := startGateway(t, testbed.NewCA(t), singleBackend(backend))
	c := mustDial(t, g.endpoint(event.NoTLS), "")
	mustExec(t, c, "LOGIN alice "+password)
	mustExec(t, c, "SELECT INBOX")
	return g, c
}

// countOctets reads up to a line that begins with end, and returns the number of octets
// before it.
func countOctets(t *testing.T, c *RawClient, end string) (n int) {
	t.Helper()
	for begins := true; ; {
		if err := c.extendDeadline(); err != nil {
			t.Fatal(err)
		}
		part, err := c.r.ReadSlice('\n')
		if begins && strings.HasPrefix(string(part), end) {
			return n
		}
		if err != nil && err != bufio.ErrBufferFull {
			t.Fatalf("after %d octets: %v", n, err)
		}
		n += len(part)
		begins = err == nil
	}
}

var muxModes = []event.Mode{event.ModeReuse, event.ModeResume}

// Dovecot CVE-2026-42006, Courier CVE-2026-67194: nested lists from a client or a backend
// cost the reader memory or stack for each level.
func TestNestedParenthesesPassBothWaysAndHoldNoMemory(t *testing.T) {
	const many = 4 << 20
	for _, mode := range muxModes {
		flood := "* 1 FETCH " + strings.Repeat("(", many) + "\r\n"
		b := &scriptedBackend{answers: map[string]string{"FETCH 1 FLAGS": flood + "TAG OK done\r\n", "SEARCH": "TAG BAD too deep\r\n"}}
		g, c := b.startSelected(t, mode)
		before := totalAlloc()
		for i := range 3 {
			sendExpect(t, c, "s SEARCH "+strings.Repeat("(", 60_000)+"\r\n", "s BAD too deep")
			if _, err := io.WriteString(c, "f FETCH 1 FLAGS\r\n"); err != nil {
				t.Fatal(err)
			}
			if n := countOctets(t, c, "f OK"); n != len(flood) {
				t.Errorf("%s: %d octets came in round %d, want %d", mode, n, i, len(flood))
			}
		}
		// The backend itself has three copies of the flood.
		if grown := totalAlloc() - before; grown > 5*uint64(many) {
			t.Errorf("%s: %d octets were allocated", mode, grown)
		}
		if n := g.sumMetric("imapgate_backend_protocol_violations_total"); n != 0 {
			t.Errorf("%s: %v protocol violations", mode, n)
		}
	}
}

// Nested lists in a response that the gateway itself parses end that connection.
func TestNestedParenthesesInAnAnswerToTheGatewayAreBounded(t *testing.T) {
	for name, answer := range map[string]string{
		"parentheses":       "* 1 FETCH " + strings.Repeat("(", 20<<20) + "\r\nTAG OK done\r\n",
		"a literal of 4 GB": "* 1 FETCH (BODY[] {4294967295}\r\n" + strings.Repeat("x", 1<<20) + "TAG",
	} {
		b := &scriptedBackend{answers: map[string]string{"SELECT Other": answer}}
		_, c := b.startSelected(t, event.ModeResume)
		before := heapInUse()
		sendExpect(t, c, "s SELECT Other\r\n", "s NO [UNAVAILABLE] ") // each such response ends its connection
		if now := heapInUse(); now > before+8<<20 {
			t.Errorf("%s: %d octets are held", name, now-before)
		}
	}
}

// net-imap CVE-2026-42245: a million empty literals in a response or a command took
// quadratic time.
func TestAMillionTinyLiteralsPassInLinearTime(t *testing.T) {
	const many = 1_000_000
	for _, mode := range muxModes {
		flood := "* 1 FETCH (" + strings.Repeat("{0}\r\n ", many) + ")\r\n"
		b := &scriptedBackend{answers: map[string]string{"FETCH 1 FLAGS": flood + "TAG OK done\r\n"}}
		g, c := b.startSelected(t, mode)
		before := heapInUse()
		if _, err := io.WriteString(c, "f FETCH 1 FLAGS\r\n"); err != nil {
			t.Fatal(err)
		}
		if n := countOctets(t, c, "f OK"); n != len(flood) {
			t.Errorf("%s: %d octets came, want %d", mode, n, len(flood))
		}
		if now := heapInUse(); now > before+uint64(len(flood))+4<<20 { // including the backend's own copy
			t.Errorf("%s: %d octets are held", mode, now-before)
		}
		before = totalAlloc()
		_, _ = io.WriteString(c, "s SEARCH"+strings.Repeat(" {0+}\r\n", many)+"\r\n") // the gateway closes the connection
		testkit.Eventually(t, "the end", func() bool { return countReasons(g.records("session_ended", "alice"))["client_protocol"] == 1 })
		if grown := totalAlloc() - before; grown > uint64(2*len(" {0+}\r\n")*many)+8<<20 {
			t.Errorf("%s: %d octets were allocated", mode, grown)
		}
	}
}

// net-imap CVE-2025-25186: the reader expanded UID ranges in COPYUID and VANISHED into four
// billion numbers.
func TestRangesOfAllNumbersAreNeverExpanded(t *testing.T) {
	const all, most = "1:4294967295", "1:4294967294"
	holes := "1:1000000000,1000000002:2000000000,2000000002:4294967294"
	for _, mode := range muxModes {
		for name, response := range map[string]string{
			"COPYUID":           "TAG OK [COPYUID 1 " + all + " " + all + "] done\r\n",
			"untagged COPYUID":  "* OK [COPYUID 1 " + all + " " + all + "] done\r\nTAG OK done\r\n",
			"VANISHED":          "* VANISHED " + all + "\r\nTAG OK done\r\n",
			"VANISHED of most":  "* VANISHED " + most + "\r\nTAG OK done\r\n",
			"VANISHED of holes": "* VANISHED " + holes + "\r\nTAG OK done\r\n",
			"VANISHED, many":    "* VANISHED " + strings.Repeat("1:4294967294,", 4000) + "5\r\nTAG OK done\r\n",
			"VANISHED EARLIER":  "* VANISHED (EARLIER) " + all + "\r\nTAG OK done\r\n",
			"EXISTS":            "* 4294967295 EXISTS\r\nTAG OK done\r\n",
			"ESEARCH":           "* ESEARCH (TAG \"TAG\") UID ALL " + all + "\r\nTAG OK done\r\n",
		} {
			b := &scriptedBackend{answers: map[string]string{"COPY": response}}
			_, c := b.startSelected(t, mode)
			before := heapInUse()
			if _, err := io.WriteString(c, "a1 COPY 1 Other\r\n"); err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(response, "TAG", "a1")
			got := make([]byte, len(want))
			if _, err := io.ReadFull(c.r, got); err != nil || string(got) != want {
				t.Errorf("%s: %s: %.200q, %v", mode, name, got, err)
			}
			sendExpect(t, c, "n STORE "+all[:9]+" +FLAGS (x)\r\n", "n ")
			if now := heapInUse(); now > before+8<<20 {
				t.Errorf("%s: %s: %d octets are held", mode, name, now-before)
			}
			_ = c.Close()
		}
	}
}

// The same in the response to a command of the gateway itself.
func TestUIDsOfAllNumbersAreNeverExpanded(t *testing.T) {
	for name, response := range map[string]string{
		"ESEARCH":      "* ESEARCH (TAG \"TAG\") UID ALL 1:4294967295\r\nTAG OK done\r\n",
		"of most":      "* ESEARCH (TAG \"TAG\") UID ALL 1:4294967294\r\nTAG OK done\r\n",
		"with holes":   "* ESEARCH (TAG \"TAG\") UID ALL 1:1000000000,1000000002:2000000000,2000000002:4294967294\r\nTAG OK done\r\n",
		"one by one":   "* SEARCH " + strings.Repeat("4294967294 ", 1<<15) + "\r\nTAG OK done\r\n",
		"all repeated": "* ESEARCH (TAG \"TAG\") UID ALL " + strings.Repeat("1:4294967294,", 1<<15) + "9\r\nTAG OK done\r\n",
	} {
		b := &scriptedBackend{answers: map[string]string{"UID SEARCH": response}, caps: "IMAP4rev1 SASL-IR AUTH=PLAIN UNSELECT QRESYNC"}
		_, c := b.startSelected(t, event.ModeResume) // fetches UIDs at once
		before := heapInUse()
		sendExpect(t, c, "n NOOP\r\n", "n OK ")
		if now := heapInUse(); now > before+24<<20 { // a bitmap of all UIDs is 8 MB
			t.Errorf("%s: %d octets are held", name, now-before)
		}
		_ = c.Close()
	}
}

// net-imap CVE-2025-43857: the reader allocated memory for the announced size of a literal.
func TestLiteralOfFourGigabytesIsRelayed(t *testing.T) {
	const part = 1 << 20
	for _, mode := range muxModes {
		head := "* 1 FETCH (BODY[] {4294967295}\r\n"
		b := &scriptedBackend{caps: "IMAP4rev1 SASL-IR AUTH=PLAIN UNSELECT QRESYNC", abort: make(chan struct{}), answers: map[string]string{
			"FETCH": head + strings.Repeat("x", part), "UID SEARCH": "* SEARCH 1\r\nTAG OK done\r\n",
		}}
		_, c := b.startSelected(t, mode)
		before := totalAlloc()
		if _, err := io.WriteString(c, "f FETCH 1 BODY[]\r\n"); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, part)
		if err := c.extendDeadline(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.r, got[:len(head)]); err != nil || string(got[:len(head)]) != head {
			t.Fatalf("%s: %q, %v", mode, got[:len(head)], err)
		}
		if _, err := io.ReadFull(c.r, got); err != nil || strings.Trim(string(got), "x") != "" {
			t.Errorf("%s: %v", mode, err)
		}
		close(b.abort)
		if rest, _ := io.ReadAll(c.r); len(rest) != 0 {
			t.Errorf("%s: %.100q came as part of the literal", mode, rest)
		}
		if grown := totalAlloc() - before; grown > 16<<20 {
			t.Errorf("%s: %d octets were allocated", mode, grown)
		}
	}
}

// GHSA-8p34-64r3-mwg8 (net-imap): {n+} sent to a server without support for it, which
// executes the octets as commands.
func TestBackendWithoutLiteralPlusGetsNoNonSyncLiteral(t *testing.T) {
	for _, mode := range muxModes {
		for _, caps := range []string{"IMAP4rev1 UNSELECT", "IMAP4rev1 UNSELECT LITERAL-"} { // LOGIN with literals
			b := &scriptedBackend{caps: caps}
			_, c := b.startSelected(t, mode)
			for _, command := range []string{"CREATE {+}", "SELECT {+}", "STATUS {+} (MESSAGES)", "SEARCH SUBJECT {+}", "LIST {+} {+}", "APPEND {+} {+}", "COPY 1 {+}"} {
				var literals [][]byte
				for range strings.Count(command, "{+}") {
					literals = append(literals, []byte("b\xc3\xb6x"+strings.Repeat("x", 5000)))
				}
				if got, err := c.Do(command, literals...); err != nil {
					t.Fatalf("%s with %s: %v, %v", command, caps, got, err)
				}
			}
			_ = c.Close()
			b.mu.Lock()
			for _, line := range b.commands {
				if m := nonSyncLiteralEnd.FindStringSubmatch(line); m != nil && !(strings.Contains(caps, "LITERAL-") && len(m[1]) < 4) {
					t.Errorf("%s with %s: the backend received %.80q", mode, caps, line)
				}
			}
			if len(b.commands) < 10 {
				t.Errorf("%s: the backend received %q", mode, b.commands)
			}
			b.mu.Unlock()
		}
	}
}

// Cyrus CVE-2024-34055: an unbounded number of literals in one command of a session.
func TestManyLiteralsInOneCommandAreBounded(t *testing.T) {
	for _, mode := range muxModes {
		_, c := (&scriptedBackend{}).startSelected(t, mode)
		before := totalAlloc()
		few := "s SEARCH" + strings.Repeat(" SUBJECT {1+}\r\nx", 1000) + "\r\n"
		sendExpect(t, c, few, "s OK ")
		sendExpect(t, c, "t SEARCH"+strings.Repeat(" SUBJECT {1+}\r\nx", 20_000)+"\r\n", "t BAD [TOOBIG] ")
		sendExpect(t, c, "n NOOP\r\n", "n OK ")
		if grown := totalAlloc() - before; grown > 64<<20 {
			t.Errorf("%s: %d octets were allocated", mode, grown)
		}
	}
}

// Proxies with several connections have let pipelined commands overtake each other.
// (Dovecot itself lets a STORE overtake the EXPUNGE before it if a client does what
// RFC 9051 §5.5 forbids.)
func TestPipelinedStoreAndExpungeKeepTheirOrder(t *testing.T) {
	pipelined := []string{
		"STORE 2:4 +FLAGS (\\Deleted)", "STORE 3 -FLAGS (\\Deleted)", "EXPUNGE", "NOOP", "EXPUNGE", "UID STORE 9 +FLAGS (\\Deleted)",
		"UID STORE 5 -FLAGS (\\Deleted)", "UID EXPUNGE 9", "UID EXPUNGE 5", "CHECK",
	}
	var text strings.Builder
	for i, command := range pipelined {
		fmt.Fprintf(&text, "p%d %s\r\n", i, command)
	}
	for _, mode := range []event.Mode{"splice", event.ModeReuse, event.ModeResume} {
		b := &scriptedBackend{}
		_, c := b.startSelected(t, mode)
		sendExpect(t, c, text.String(), "p0 OK ")
		for i := 1; i < len(pipelined); i++ {
			sendExpect(t, c, "", fmt.Sprintf("p%d OK ", i))
		}
		b.mu.Lock()
		received := strings.Join(slices.DeleteFunc(b.commands, func(line string) bool { return line[0] != 'p' }), "")
		b.mu.Unlock()
		if received != text.String() {
			t.Errorf("%s: the backend received\n%s", mode, received)
		}
	}
	backend := testbed.StartDovecot(t, testbed.DovecotConfig{})
	for _, mode := range []event.Mode{"splice", event.ModeReuse, event.ModeResume} {
		g := startGateway(t, backend.CA, singleBackend(backendConf(backend, event.NoTLS)+muxMode(mode, "")))
		c := mustDial(t, g.endpoint(event.NoTLS), "")
		mustExec(t, c, "LOGIN pipe."+string(mode)+" "+password)
		for i := range 9 {
			if err := checkOK(c.Do("APPEND INBOX {}", fmt.Appendf(nil, "Subject: %d\r\n\r\n", i+1))); err != nil {
				t.Fatal(err)
			}
		}
		mustExec(t, c, "SELECT INBOX")
		if _, err := io.WriteString(c, text.String()); err != nil {
			t.Fatal(err)
		}
		if all, err := c.ReadUntil(fmt.Sprintf("p%d", len(pipelined)-1)); err != nil {
			t.Fatalf("%s: %v, %v", mode, all, err)
		}
		uids, err := c.Do("UID SEARCH ALL")
		if err != nil || uids[0].Text != "* SEARCH 1 3 5 6 7 8" {
			t.Errorf("%s: left are %v, %v", mode, uids, err)
		}
	}
}
