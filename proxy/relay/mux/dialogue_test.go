package mux

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay"
)

// A dialogue is a title ("# Sentence.") and lines, up to the next title:
//
//	SKIP TEXT    do not run the dialogue: a known defect
//	SKIP-SPLIT TEXT … with lines split into parts
//	SET K=V…     mode, learn, learnmax, hold, lost, silence, flagsmax, verify, max, ttl, consistent, detach,
//	             token (ended), id (before the login), unrouted
//	CAPS TEXT    the backend's capabilities
//	C TEXT       the client sends TEXT and CRLF
//	C! "TEXT"    the client sends TEXT, a Go string, alone
//	C-END, C-FIN, C-RST   the client closes the connection, closes its own side only, or resets the connection
//	P TEXT       the client receives the line TEXT; … stands for any text
//	P! "TEXT"    the client receives TEXT, a Go string; anything may follow
//	END          the gateway closes the client's connection with a FIN and sends nothing more
//	CUT          … with a FIN or a RST
//	U1 TEXT      the first upstream connection receives TEXT; ~x in it is a tag of the gateway
//	U1! "TEXT"   the first upstream connection receives TEXT, a Go string
//	U1-END       the gateway closes it
//	B1 TEXT      the backend sends TEXT on it, with the gateway's tags in place of ~x
//	B1! "TEXT"   the backend sends TEXT, a Go string, alone
//	B1-END, B1-RST        the backend closes or resets the connection
//	ARRIVED 1    wait until everything sent on the first upstream connection has arrived
//	LOGINS TEXT  from now on the backend answers logins with TEXT; without TEXT it accepts them
//	DOWN, UP     from now on the backend is down, or up
//	LOGINCAPS TEXT        from now on the backend has these capabilities
//	MOVED NAME MODE       from now on the user's mailbox is at another backend, whose sessions have a mode
//	AT NAME      the session is one of that backend
//	MOVE, PAUSE, RESUME   what an operator asks of the session
//	CANNOT MOVE, CANNOT PAUSE   … and what it cannot do
//	LEFT         wait until the session has left its connection
//	SLEEP 50ms   wait
//	RENAMED NAME from now on the route has another login name
//	OPEN N U M   client and backend open INBOX with N messages, UIDNEXT U and HIGHESTMODSEQ M (0: none)
//	REOPEN K N U M        the gateway opens INBOX again, on the backend's K-th connection
//	M NAME VALUE wait until a metric has the VALUE
//	PINNED WHY   the session is spliced
//	ORDER WHY    an operator ends the session
//	OVERDUE 5s   the session expired that long ago, and the clock checks
//	REC TEXT     a command is recorded (in short), except SELECT and LOGOUT; list all of them or none
//	HIDES TEXT   no error, log line or record contains TEXT in any case
//	ENDED WHY    the recorded reason for the end of the session
//
// Upstream connections are numbered in the order of their logins. The first one exists
// from the beginning. If the client's connection is still open, the dialogue ends with a
// LOGOUT. No side may receive anything else.
type dialogue struct {
	title           string
	skip, skipSplit string
	lines           []string
}

func readDialogues(t testing.TB) (all []dialogue) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.txt")
	testkit.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		testkit.NoError(t, err)
		first := len(all)
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\n")
			switch verb, rest, _ := strings.Cut(line, " "); {
			case line == "":
			case verb == "#":
				all = append(all, dialogue{title: strings.TrimSuffix(rest, ".")})
			case len(all) == first:
				t.Fatalf("%s: a line before the first title", file)
			case verb == "SKIP":
				all[len(all)-1].skip = rest
			case verb == "SKIP-SPLIT":
				all[len(all)-1].skipSplit = rest
			default:
				all[len(all)-1].lines = append(all[len(all)-1].lines, line)
			}
		}
	}
	if len(all) == 0 {
		t.Fatal("no dialogues")
	}
	return all
}

// combinations are the transports and splits with which a dialogue runs. With the last
// one the session parks before each line.
var combinations = [][2]string{{"plain", "whole"}, {"plain", "bytes"}, {"tls", "random"}, {"plain", "parked"}}

func TestDialogues(t *testing.T) {
	checkGoroutineLeaks(t)
	certs := newCertificates(t)
	var playing sync.WaitGroup
	slots := make(chan struct{}, 16) // a dialogue mostly waits
	for _, d := range readDialogues(t) {
		for _, combination := range combinations {
			slots <- struct{}{}
			playing.Go(func() {
				t.Run(d.title+"/"+combination[0]+"/"+combination[1], func(t *testing.T) { d.play(t, certs, combination[0], combination[1]) })
				<-slots
			})
		}
	}
	playing.Wait()
}

// dialogueRun is a running dialogue.
type dialogueRun struct {
	*harness
	*testClient
	splitMode    string
	tags         map[string]string // the gateway's, by their names in the dialogue
	closed       bool              // the client's connection has ended
	clientLeft   bool              // by the client
	answerCount  int               // answers to commands that the client received
	wantRecords  []string          // of REC
	hiddenText   string            // of HIDES
	reason       string
	spliceReason string
}

func (d dialogue) play(t *testing.T, certs *certificates, transport, splitMode string) {
	if d.skip != "" {
		t.Skip(d.skip)
	}
	if d.skipSplit != "" && (splitMode == "bytes" || splitMode == "random") {
		t.Skip(d.skipSplit)
	}
	p := &dialogueRun{splitMode: splitMode, tags: map[string]string{}}
	s := setup{transport: transport, split: splitMode}
	if splitMode == "parked" {
		s.split = "whole"
	}
	lines := s.read(t, d.lines)
	p.harness = newHarness(t, s, certs)
	defer p.stub.close()
	p.testClient = p.logIn()
	for i, line := range lines {
		if err := p.step(line); err != nil {
			t.Errorf("line %d, %q: %v", i+1, line, err)
			t.Logf("at line %d:\n%s", i+1, stacks())
			p.deps.Sessions.AbortAll(event.Drained)
			p.scriptedConn.queueClose()
			p.hub.Close()
			t.Fatalf("log:\n%s", p.logs)
		}
	}
	if err := p.finish(); err != nil {
		t.Error(err)
	}
	p.harness.close(p.testClient)
	p.checkNoMoreOutput()
	p.checkRecords()
	p.checkHidden()
}

// read reads the lines about the setup and returns the others.
func (s *setup) read(t testing.TB, lines []string) []string {
	for i, line := range lines {
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "CAPS":
			s.caps = rest
		case "SET":
			for field := range strings.FieldsSeq(rest) {
				name, value, _ := strings.Cut(field, "=")
				testkit.NoError(t, s.set(name, value))
			}
		default:
			return lines[i:]
		}
	}
	return nil
}

func (s *setup) set(name, value string) (err error) {
	number := func() (n int) { n, err = strconv.Atoi(value); return n }
	duration := func() (d time.Duration) { d, err = time.ParseDuration(value); return d }
	switch name {
	case "mode":
		s.mode = event.Mode(value)
	case "learn":
		s.settings.UIDPrefetch = value
	case "learnmax":
		s.settings.UIDPrefetchMaxMessages = number()
	case "hold":
		s.settings.CommandHoldTimeout = duration()
	case "silence":
		s.settings.SilenceTimeout = duration()
	case "lost":
		s.settings.IdleReattachTimeout = duration()
	case "flagsmax":
		s.settings.FlagResyncMaxMessages = number()
	case "verify":
		s.settings.ConsistencyCheck = value
	case "max":
		s.settings.MaxPerUser = number()
	case "ttl":
		s.settings.PoolIdleTimeout = duration()
	case "consistent":
		s.settings.ReadAfterWrite = true
	case "detach":
		s.settings.AlwaysDetach = true
	case "token":
		s.tokenExpired = true
	case "id":
		s.id = value
	case "unrouted":
		s.loginNotFromRoute = true
	default:
		err = fmt.Errorf("no such setting: %s", name)
	}
	return err
}

// step runs one line.
func (p *dialogueRun) step(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	if p.splitMode == "parked" && (strings.ContainsAny(verb[:1], "CB") || verb == "MOVE" || verb == "PAUSE" || verb == "RESUME") {
		p.awaitParked()
	}
	if n, err := strconv.Atoi(strings.TrimRight(verb[1:], "!-ENDRST")); err == nil && strings.ContainsAny(verb[:1], "UB") {
		return p.upstreamStep(n, verb, rest)
	}
	switch verb {
	case "C":
		p.scriptedConn.send(p.expandTags(rest) + "\r\n")
	case "C!":
		return p.doQuoted(rest, p.scriptedConn.send)
	case "C-END", "C-FIN", "C-RST":
		p.disconnectClient(verb)
	case "P":
		got, err := p.scriptedConn.readLine()
		p.answerCount += countAnswers(got)
		return p.matchLine(got, err, rest)
	case "P!":
		return p.doQuotedErr(rest, p.scriptedConn.expect)
	case "END", "CUT":
		return p.expectClientEnd(verb)
	case "OPEN":
		return p.openInbox(rest)
	case "REOPEN":
		return p.reopenInbox(rest)
	default:
		return p.control(verb, rest)
	}
	return nil
}

// expectClientEnd requires the gateway to close the client's connection, and then closes
// it.
func (p *dialogueRun) expectClientEnd(verb string) error {
	p.closed = true
	defer p.scriptedConn.queueClose()
	if verb == "END" {
		return p.scriptedConn.expectEnd(cleanEnd)
	}
	return p.scriptedConn.expectEnd(anyEnd)
}

func (p *dialogueRun) disconnectClient(verb string) {
	p.closed, p.clientLeft = true, true
	switch verb {
	case "C-END":
		p.scriptedConn.queueClose()
	case "C-FIN":
		p.scriptedConn.queueCloseWrite()
	default:
		p.scriptedConn.queueReset()
	}
}

// control runs a line that is about neither the client nor an upstream connection.
func (p *dialogueRun) control(verb, rest string) error {
	switch verb {
	case "LOGINS":
		p.stub.set(func() { p.stub.loginRefusal = rest })
	case "DOWN":
		p.stub.set(func() { p.stub.down = true })
	case "UP":
		p.stub.set(func() { p.stub.down = false })
	case "LOGINCAPS":
		p.stub.set(func() { p.stub.caps = rest })
	case "MOVED":
		name, mode, _ := strings.Cut(rest, " ")
		p.mu.Lock()
		p.location.Backend, p.location.Mode = name, event.Mode(mode)
		p.mu.Unlock()
	case "RENAMED":
		p.mu.Lock()
		p.location.Login = rest
		p.mu.Unlock()
	case "ARRIVED":
		return p.awaitArrival(rest)
	case "ORDER":
		p.session.live.End(event.Reason(rest))
	case "AT", "MOVE", "PAUSE", "RESUME", "CANNOT", "LEFT":
		return p.move(verb, rest)
	case "SLEEP":
		d, err := time.ParseDuration(rest)
		<-time.After(d)
		return err
	case "OVERDUE":
		return p.expireSession(rest)
	case "PINNED":
		p.spliceReason = rest
		return p.awaitMetric("mux_pins_total{reason=\""+rest+"\"}", "1")
	case "M":
		name, value, _ := strings.Cut(rest, "} ")
		if value == "" {
			name, value, _ = strings.Cut(rest, " ")
			return p.awaitMetric(name, value)
		}
		return p.awaitMetric(name+"}", value)
	case "REC":
		p.wantRecords = append(p.wantRecords, rest)
	case "HIDES":
		p.hiddenText = rest
	case "ENDED":
		p.reason = rest
	default:
		return fmt.Errorf("no such verb")
	}
	return nil
}

// move runs a line about a move of the session.
func (p *dialogueRun) move(verb, rest string) error {
	live, can := p.session.live, true
	switch verb + rest {
	case "MOVE", "CANNOTMOVE":
		can = live.Move()
	case "PAUSE", "CANNOTPAUSE":
		can = live.Pause()
	case "RESUME":
		live.Resume()
	case "LEFT":
		testkit.Eventually(p.harness.t, "the session to leave", func() bool { return !live.IsLeaving() })
	default:
		if name := live.Info().Backend; name != rest {
			return fmt.Errorf("the session is at %s", name)
		}
	}
	if can == (verb == "CANNOT") {
		return fmt.Errorf("can move: %v", can)
	}
	return nil
}

// expireSession ends the session as the clock does when it has expired.
func (p *dialogueRun) expireSession(ago string) error {
	d, err := time.ParseDuration(ago)
	if err != nil {
		return err
	}
	if d >= relay.FinishTimeout {
		p.session.live.Abort(event.TokenExpired)
	} else {
		p.session.live.End(event.TokenExpired)
	}
	return nil
}

// awaitArrival waits until everything sent on an upstream connection is readable for the
// gateway, or has been read.
func (p *dialogueRun) awaitArrival(number string) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	peer, err := p.stub.peer(n)
	if err != nil {
		return err
	}
	peer.awaitWritten()
	testkit.Eventually(p.harness.t, "the sent data to arrive", func() bool {
		up := p.session.upstream.wire.Load()
		return up == nil || up.IsReadable()
	})
	return nil
}

func (p *dialogueRun) awaitMetric(series, value string) error {
	for end := time.Now().Add(testTimeout / 2); p.metric(series) != value; <-time.After(2 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("%s is %q", series, p.metric(series))
		}
	}
	return nil
}

// upstreamStep runs a line of the n-th upstream connection.
func (p *dialogueRun) upstreamStep(n int, verb, rest string) error {
	peer, err := p.stub.peer(n)
	if err != nil {
		return err
	}
	switch verb[:1] + strings.TrimLeft(verb[1:], "0123456789") {
	case "U":
		got, err := peer.readLine()
		return p.matchLine(got, err, rest)
	case "U!":
		return p.doQuotedErr(rest, peer.expect)
	case "U-END":
		return peer.expectEnd(anyEnd)
	case "B":
		peer.send(p.expandTags(rest) + "\r\n")
	case "B!":
		return p.doQuoted(rest, peer.send)
	case "B-END":
		peer.queueClose()
	case "B-RST":
		peer.queueReset()
	default:
		return fmt.Errorf("no such verb")
	}
	return nil
}

func (p *dialogueRun) doQuoted(text string, do func(string)) error {
	text, err := strconv.Unquote(text)
	if err == nil {
		do(p.expandTags(text))
	}
	return err
}

func (p *dialogueRun) doQuotedErr(text string, do func(string) error) error {
	text, err := strconv.Unquote(text)
	if err != nil {
		return err
	}
	return do(p.expandTags(text))
}

// expandTags replaces the names of the gateway's tags by the tags.
func (p *dialogueRun) expandTags(text string) string {
	return tagPattern.ReplaceAllStringFunc(text, func(name string) string { return cmp.Or(p.tags[name], name) })
}

var tagPattern = regexp.MustCompile("~[a-z]+[0-9]*")

// matchLine compares a line with a pattern, and stores the gateway's tag in it.
func (p *dialogueRun) matchLine(got string, err error, want string) error {
	if err != nil {
		return fmt.Errorf("received %.200q, %w", got, err)
	}
	text, ok := strings.CutSuffix(got, "\r\n")
	if name := tagPattern.FindString(want); ok && strings.HasPrefix(want, "~") && p.tags[name] == "" {
		p.tags[name], _, _ = strings.Cut(text, " ")
	}
	if !ok || !matchPattern(text, p.expandTags(want)) {
		return fmt.Errorf("received %.400q", got)
	}
	return nil
}

// matchPattern reports whether text matches pattern, in which … stands for any text.
func matchPattern(text, pattern string) bool {
	parts := strings.Split(pattern, "…")
	text, ok := strings.CutPrefix(text, parts[0])
	if !ok || len(parts) == 1 {
		return ok && text == ""
	}
	for _, part := range parts[1 : len(parts)-1] {
		_, after, found := strings.Cut(text, part)
		if !found {
			return false
		}
		text = after
	}
	return strings.HasSuffix(text, parts[len(parts)-1])
}

// selectLines returns the untagged responses to SELECT.
func selectLines(messages, next, modseq string) []string {
	lines := []string{
		`* FLAGS (\Seen \Deleted)`, `* OK [PERMANENTFLAGS (\Seen \Deleted \*)] Limited`, "* " + messages + " EXISTS",
		"* 0 RECENT", "* OK [UIDVALIDITY 100] UIDs valid", "* OK [UIDNEXT " + next + "] Predicted",
	}
	if modseq != "0" {
		lines = append(lines, "* OK [HIGHESTMODSEQ "+modseq+"] Highest")
	}
	return lines
}

func (p *dialogueRun) openInbox(args string) error {
	f := strings.Fields(args)
	steps := []string{"C s SELECT INBOX", "U1 s SELECT INBOX"}
	lines := append(selectLines(f[0], f[1], f[2]), "s OK [READ-WRITE] Select completed.")
	for _, line := range lines {
		steps = append(steps, "B1 "+line)
	}
	for _, line := range lines {
		steps = append(steps, "P "+line)
	}
	return p.runSteps(steps)
}

func (p *dialogueRun) reopenInbox(args string) error {
	f := strings.Fields(args)
	tag := "~open" + f[0]
	steps := []string{"U" + f[0] + " " + tag + " SELECT \"INBOX\""}
	for _, line := range append(selectLines(f[1], f[2], f[3]), tag+" OK [READ-WRITE] Select completed.") {
		steps = append(steps, "B"+f[0]+" "+line)
	}
	return p.runSteps(steps)
}

func (p *dialogueRun) runSteps(steps []string) error {
	for _, step := range steps {
		if err := p.step(step); err != nil {
			return fmt.Errorf("%q: %w", step, err)
		}
	}
	return nil
}

// finish ends the dialogue.
func (p *dialogueRun) finish() error {
	switch {
	case p.spliceReason != "":
		p.scriptedConn.queueClose()
	case !p.closed:
		if err := p.runSteps([]string{"C zz LOGOUT", "P * BYE Logging out", "P zz OK Logout completed.", "END"}); err != nil {
			return err
		}
		p.reason = cmp.Or(p.reason, string(event.ClientLogout))
	}
	r := p.awaitEnd(p.testClient)
	if p.reason == string(event.ClientClosed) && r.Reason == event.ClientError { // it closed with unread bytes
		r.Reason = event.ClientClosed
	}
	if p.reason != "" && string(r.Reason) != p.reason || r.Reason == event.InternalError {
		return fmt.Errorf("ended for %q (%w), want %q", r.Reason, r.Err, p.reason)
	}
	if p.wasHandedOver() != (p.spliceReason != "") {
		return fmt.Errorf("handed over: %v", p.wasHandedOver())
	}
	return nil
}

// checkNoMoreOutput requires that nothing was sent upstream beyond the dialogue.
func (p *dialogueRun) checkNoMoreOutput() {
	p.stub.mu.Lock()
	peers := p.stub.peers
	p.stub.mu.Unlock()
	for i, peer := range peers {
		if p.spliceReason != "" {
			break
		}
		if text, _ := peer.readAll(); text != "" {
			p.harness.t.Errorf("upstream connection %d also received %.200q", i+1, text)
		}
	}
}
