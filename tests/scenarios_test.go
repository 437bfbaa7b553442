package tests

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
)

// Each scenario is a script of commands with the expected responses. checkScenarios runs it
// directly at the backend and through a gateway, and compares the transcripts.

// checkScenarios runs all scenarios for one mode of the gateway.
func checkScenarios(t *testing.T, backend mailServer, through endpointFunc) {
	checkScenariosFiltered(t, backend, through, func(transcript []string) []string { return transcript })
}

// checkScenariosFiltered is checkScenarios with filtered transcripts.
func checkScenariosFiltered(t *testing.T, backend mailServer, through endpointFunc, filter func([]string) []string) {
	if testbed.HasCyrus() { // which still offers login mechanisms after the login
		other := filter
		filter = func(transcript []string) []string { return other(filterTranscript(transcript)) }
	}
	for i, scenario := range []struct {
		name string
		run  func(*scenarioRun)
	}{
		{"two devices see each other's changes while idle", changesDuringIdle},
		{"two devices see each other's changes by NOOP", changesByNoop},
		{"mailboxes are made, renamed, subscribed and deleted", mailboxesChange},
		{"messages are copied, moved and removed by UID", messagesMove},
		{"the server searches", serverSearches},
		{"the server sorts and threads", serverSortsAndThreads},
		{"a device that was offline catches up", offlineCatchesUp},
		{"a large message is stored and read in parts", largeMessageInParts},
		{"quota is reported and enforced", quotaIsEnforced},
		{"a mailbox is shared with another user", mailboxIsShared},
		{"twenty connections of one user work at once", twentyConnections},
		{"commands sent together are answered in order", commandsTogether},
	} {
		t.Run(scenario.name, func(t *testing.T) {
			t.Parallel()
			// Every run has its own accounts, with names of equal length.
			direct := runScenario(t, scenario.run, directEndpoint(backend), fmt.Sprintf("d%02d", i))
			if d := diffTranscripts(filter(direct), filter(runScenario(t, scenario.run, through, fmt.Sprintf("g%02d", i)))); d != "" {
				t.Errorf("the gateway (+++) differs from the backend (---):\n%s", d)
			}
		})
	}
}

// startScenarioBackend starts a server that supports every scenario. Users named small have a
// small quota.
func startScenarioBackend(t *testing.T) mailServer {
	t.Helper()
	if testbed.HasCyrus() {
		var users []string
		for i := range 12 {
			for _, person := range []string{"amy", "bob", "small"} {
				users = append(users, fmt.Sprintf("%s.d%02d", person, i), fmt.Sprintf("%s.g%02d", person, i))
			}
		}
		return startMail(t, users...)
	}
	return testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, SmallQuota: "1M"})
}

func TestGatewayPassesIMAPScenarios(t *testing.T) {
	backend := startScenarioBackend(t)
	checkScenarios(t, backend, gatewayEndpoint(t, backend))
}

func TestGatewayPassesIMAPScenariosWithoutTLS(t *testing.T) {
	backend := startScenarioBackend(t)
	checkScenarios(t, backend, plainGatewayEndpoint(t, backend))
}

// The comparison must detect a single extra response.
func TestExtraResponseIsDetected(t *testing.T) {
	backend := startScenarioBackend(t)
	injector := faultproxy.Start(t, backend.Endpoints().Plain)
	through := func(testing.TB, string) endpoint { return endpoint{address: injector.Address()} }
	scenario := func(s *scenarioRun) {
		injector.SetRules(faultproxy.ToClient, faultproxy.Rules{})
		d := s.login("amy")
		injector.SetRules(faultproxy.ToClient, faultproxy.Rules{
			Faults: []faultproxy.Fault{{Action: faultproxy.Inject, Bytes: []byte("* 7 EXISTS\r\n")}},
		})
		d.expectOK("NOOP")
	}
	direct := runScenario(t, scenario, directEndpoint(backend), "d")
	if d := diffTranscripts(direct, runScenario(t, scenario, through, "g")); d == "" {
		t.Error("a transcript with an injected response was not detected")
	}
}

func TestEveryBackendListenerBehavesTheSame(t *testing.T) {
	backend := startScenarioBackend(t)
	at := backend.Endpoints()
	secured := at.CA.ClientTLS(testbed.DovecotName)
	direct := runScenario(t, messagesMove, directEndpoint(backend), "d")
	for name, e := range map[string]endpoint{
		"plain":    {address: at.Plain},
		"STARTTLS": {address: at.Plain, tls: secured, starttls: true},
	} {
		through := func(testing.TB, string) endpoint { return e }
		if d := diffTranscripts(direct, runScenario(t, messagesMove, through, strings.ToLower(name))); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
}

func changesDuringIdle(s *scenarioRun) {
	phone, laptop := s.login("amy"), s.login("amy")
	phone.expectOK("SELECT INBOX")
	laptop.expectOK("SELECT INBOX")
	phone.startIdle()
	laptop.appendMessage("INBOX", newMessage("lunch"))
	phone.awaitResponse("* 1 EXISTS")
	laptop.expectOK(`STORE 1 +FLAGS (\Flagged)`)
	phone.awaitResponse(`* 1 FETCH (FLAGS (\Flagged))`)
	laptop.expectOK(`STORE 1 +FLAGS (\Deleted)`)
	phone.awaitResponse(`* 1 FETCH (FLAGS (\Flagged \Deleted))`)
	laptop.expectOK("EXPUNGE")
	phone.awaitResponse("* 1 EXPUNGE")
	phone.endIdle()

	laptop.startIdle()
	phone.appendMessage("INBOX", newMessage("supper"), `\Seen`)
	laptop.awaitResponse("* 1 EXISTS")
	laptop.endIdle()
	phone.expect(phone.expectOK("FETCH 1 (FLAGS UID)"), `* 1 FETCH (FLAGS (\Seen) UID 2)`)
	laptop.expect(laptop.expectOK("FETCH 1 (FLAGS UID)"), `* 1 FETCH (FLAGS (\Seen) UID 2)`)
	phone.logout()
	laptop.logout()
}

func changesByNoop(s *scenarioRun) {
	phone, laptop := s.login("amy"), s.login("amy")
	phone.expectOK("SELECT INBOX")
	laptop.expectOK("SELECT INBOX")
	for _, subject := range []string{"one", "two", "three"} {
		laptop.appendMessage("INBOX", newMessage(subject))
	}
	phone.expect(phone.expectOK("NOOP"), "* 3 EXISTS")
	laptop.expectOK(`STORE 2 FLAGS (\Seen $Forwarded)`)
	phone.expect(phone.expectOK("NOOP"), `* 2 FETCH (FLAGS (\Seen $Forwarded))`)
	laptop.expectOK(`STORE 1 +FLAGS.SILENT (\Deleted)`)
	laptop.expect(laptop.expectOK("EXPUNGE"), "* 1 EXPUNGE")
	// RFC 9051 §7.5.1: no EXPUNGE during FETCH, or numbers would shift under it.
	for _, line := range phone.expectOK("FETCH 2:3 (UID)") {
		if line == "S: * 1 EXPUNGE" {
			phone.run.Error("EXPUNGE during FETCH")
		}
	}
	phone.expect(phone.expectOK("NOOP"), "* 1 EXPUNGE")
	phone.expect(phone.expectOK("FETCH 1 (UID)"), "* 1 FETCH (UID 2)")
	// From here in the other direction.
	phone.expectOK(`STORE 1 -FLAGS (\Seen)`)
	laptop.expect(laptop.expectOK("NOOP"), "* 1 FETCH (FLAGS ($Forwarded))")
	phone.expect(phone.expectOK("STATUS INBOX (MESSAGES UIDNEXT UNSEEN)"), "* STATUS INBOX (MESSAGES 2 UIDNEXT 4 UNSEEN 2)")
}

func mailboxesChange(s *scenarioRun) {
	phone, laptop := s.login("amy"), s.login("amy")
	phone.expectOK("CREATE Work/2024/July")
	phone.expectOK("CREATE {}", []byte("R&AOk-sum&AOk-s")) // Résumés, in modified UTF-7 (RFC 3501 §5.1.3)
	if !testbed.HasCyrus() {                               // which allows neither name
		phone.expectOK(`CREATE "with \"quotes\" and \\backslash"`)
	}
	laptop.expect(laptop.expectOK(`LIST "" *`), `* LIST (\HasNoChildren) "/" Work/2024/July`)
	laptop.expectOK("SUBSCRIBE Work/2024/July")
	phone.expect(phone.expectOK(`LSUB "" *`), `* LSUB () "/" Work/2024/July`)
	phone.expectOK("RENAME Work/2024 Work/old")
	laptop.expect(laptop.expectOK(`LIST "" Work/old/%`), `* LIST (\HasNoChildren) "/" Work/old/July`)
	laptop.expectNO("SELECT Work/2024/July")
	laptop.appendMessage("Work/old/July", newMessage("a plan"))
	phone.expect(phone.expectOK("STATUS Work/old/July (MESSAGES UNSEEN)"), "* STATUS Work/old/July (MESSAGES 1 UNSEEN 1)")
	// RFC 5258 and RFC 5819: one round trip for a whole folder list.
	phone.expectOK(`LIST (SUBSCRIBED RECURSIVEMATCH) "" * RETURN (CHILDREN STATUS (MESSAGES UIDVALIDITY))`)
	laptop.expectOK("UNSUBSCRIBE Work/2024/July")
	laptop.expectOK("DELETE Work/old/July")
	phone.expectNO("DELETE Work/old/July")
	if !testbed.HasCyrus() { // where INBOX exists from the start
		phone.expectOK("CREATE INBOX") // it exists only after the first message
	}
	phone.expectNO("CREATE INBOX")
	phone.expectNO("APPEND Nowhere {}", newMessage("lost"))
	phone.expectOK(`LIST "" *`)
	phone.expectOK(`LSUB "" *`)
}

func messagesMove(s *scenarioRun) {
	d := s.login("amy")
	d.expectOK("CREATE Archive")
	for i := range 5 {
		d.appendMessage("INBOX", newMessage(fmt.Sprint("number ", i+1)))
	}
	d.expectOK("SELECT INBOX")
	d.expectOK("UID COPY 1:2 Archive")
	d.expectOK("UID MOVE 3,5 Archive")
	d.expectOK(`UID STORE 1,2,4 +FLAGS.SILENT (\Deleted)`)
	d.expect(d.expectOK("UID EXPUNGE 2"), "* 2 EXPUNGE")
	d.expectNO("UID COPY 1 Nowhere")
	d.expect(d.expectOK("SEARCH ALL"), "* SEARCH 1 2")
	d.expectOK("CLOSE") // removes \Deleted messages without responses
	d.expect(d.expectOK("EXAMINE INBOX"), "* 0 EXISTS")
	d.expectOK("UNSELECT")
	d.expect(d.expectOK("SELECT Archive"), "* 4 EXISTS")
	d.expectOK("FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
	d.expectOK("FETCH 1 BODY[]")
	d.expect(d.expectOK("FETCH 1 FLAGS"), `* 1 FETCH (FLAGS (\Seen))`)
	d.logout()
}

func serverSearches(s *scenarioRun) {
	d := s.login("amy")
	d.appendMessage("INBOX", newMessage("the budget"), `\Seen`)
	d.appendMessage("INBOX", newMessage("lunch", "Cc: budget@example.org"), `\Flagged`)
	d.appendMessage("INBOX", newMessage("=?utf-8?q?Caf=C3=A9?="))
	d.appendMessage("INBOX", messageOfSize(20_000, "long"), `\Answered`, `\Seen`)
	d.expectOK("SELECT INBOX")
	for _, search := range []struct{ key, want string }{
		{"ALL", "1 2 3 4"},
		{"SUBJECT budget", "1"},
		{"OR SUBJECT budget CC budget", "1 2"},
		{"UNSEEN NOT FLAGGED", "3"},
		{"TEXT {}", "4"},
		{"LARGER 10000 SINCE 1-Jul-2024 BEFORE 1-Aug-2024", "4"},
		{"2:* (SEEN OR (ANSWERED) (DELETED))", "4"},
		{"HEADER From ann@example.org SENTON 17-Jul-2024 UID 2:3", "2 3"},
	} {
		if search.key == "TEXT {}" {
			d.expect(d.expectOK("SEARCH TEXT {}", []byte("dull boy")), "* SEARCH "+search.want)
			continue
		}
		d.expect(d.expectOK("SEARCH "+search.key), "* SEARCH "+search.want)
	}
	d.expect(d.expectOK("SEARCH CHARSET UTF-8 SUBJECT {}", []byte("CAFÉ")), "* SEARCH 3")
	if !testbed.HasCyrus() { // which finds no message and sends OK
		d.expectNO("SEARCH CHARSET X-UNKNOWN SUBJECT a")
	}
	found := d.expectOK("UID SEARCH RETURN (MIN MAX COUNT ALL) SEEN")
	tag, _, _ := strings.Cut(d.lastAnswer[len(d.lastAnswer)-1].Text, " ")
	d.expect(found, `* ESEARCH (TAG "`+tag+`") UID MIN 1 MAX 4 ALL 1,4 COUNT 2`, `* ESEARCH (TAG "`+tag+`") UID COUNT 2 MIN 1 MAX 4 ALL 1,4`)
	if !strings.Contains(d.transcript[0], " SEARCHRES") {
		return
	}
	d.expectOK("UID SEARCH RETURN (SAVE) UNSEEN") // RFC 5182: $ is the result
	d.expect(d.expectOK("UID FETCH $ (FLAGS)"), `* 2 FETCH (UID 2 FLAGS (\Flagged))`, `* 2 FETCH (FLAGS (\Flagged) UID 2)`)
}

func serverSortsAndThreads(s *scenarioRun) {
	d := s.login("amy")
	d.appendMessage("INBOX", threadMessage(4, "zebra"))
	d.appendMessage("INBOX", threadMessage(1, "plans"))
	d.appendMessage("INBOX", threadMessage(2, "Re: plans", "<1@example.org>"))
	d.appendMessage("INBOX", threadMessage(3, "Re: plans", "<1@example.org>", "<2@example.org>"))
	d.appendMessage("INBOX", threadMessage(5, "Re: plans", "<1@example.org>"))
	d.expectOK("SELECT INBOX")
	d.expect(d.expectOK("THREAD REFERENCES UTF-8 ALL"), "* THREAD (2 (3 4)(5))(1)")
	d.expect(d.expectOK("UID THREAD REFS US-ASCII SUBJECT plans"), "* THREAD (2 (3 4)(5))")
	d.expectOK("THREAD ORDEREDSUBJECT UTF-8 ALL")
	d.expect(d.expectOK("SORT (DATE) UTF-8 ALL"), "* SORT 2 3 4 1 5")
	d.expect(d.expectOK("SORT (REVERSE SUBJECT DATE) UTF-8 ALL"), "* SORT 1 2 3 4 5")
	d.expect(d.expectOK("UID SORT (REVERSE DATE) US-ASCII SUBJECT plans"), "* SORT 5 4 3 2")
	d.expectOK("SORT (DISPLAYFROM SIZE) UTF-8 ALL")
	d.expectOK("UID SORT RETURN (MIN MAX COUNT) (REVERSE DATE) UTF-8 ALL")
}

func offlineCatchesUp(s *scenarioRun) {
	phone, laptop := s.login("amy"), s.login("amy")
	for i := range 10 {
		laptop.appendMessage("INBOX", newMessage(fmt.Sprint("number ", i+1)))
	}
	phone.expectOK("SELECT INBOX (CONDSTORE)")
	validity, known := phone.lastNumber("UIDVALIDITY"), phone.lastNumber("HIGHESTMODSEQ")
	phone.logout()

	laptop.expectOK("SELECT INBOX")
	laptop.expectOK(`STORE 2 +FLAGS (\Seen)`)
	laptop.expectOK(`STORE 3,5,10 +FLAGS (\Deleted)`)
	laptop.expectOK("EXPUNGE")
	laptop.appendMessage("INBOX", newMessage("the eleventh"), `\Flagged`)

	// With CONDSTORE alone (RFC 7162 §3.1) the phone requests changes by CHANGEDSINCE.
	phone = s.login("amy")
	phone.expectOK("SELECT INBOX (CONDSTORE)")
	phone.expectOK("UID FETCH 1:* (FLAGS) (CHANGEDSINCE " + known + ")")
	phone.expect(phone.expectOK("UID SEARCH ALL"), "* SEARCH 1 2 4 6 7 8 9 11")
	phone.expectOK("UID SEARCH MODSEQ " + known)
	phone.logout()

	// With QRESYNC (RFC 7162 §3.2) SELECT reports all changes.
	phone = s.login("amy")
	if enabled := phone.expectOK("ENABLE QRESYNC")[0]; !strings.HasPrefix(enabled, "S: * ENABLED ") || !strings.HasSuffix(enabled, " QRESYNC") {
		s.Errorf("ENABLE QRESYNC gave %q", enabled)
	}
	got := phone.expectOK(fmt.Sprintf("SELECT INBOX (QRESYNC (%s %s 1:10))", validity, known))
	phone.expect(got, "* VANISHED (EARLIER) 3,5,10")
	phone.expectOK("UID FETCH 1:* (FLAGS) (CHANGEDSINCE " + known + " VANISHED)")
	laptop.expectOK(`UID STORE 1 +FLAGS.SILENT (\Deleted)`)
	laptop.expectOK("EXPUNGE")
	phone.expect(phone.expectOK("NOOP"), "* VANISHED 1")
	// The laptop has changed message 2 since: the phone's change must not win.
	phone.expectOK("UID STORE 2 (UNCHANGEDSINCE " + known + `) FLAGS (\Draft)`)
	phone.expect(laptop.expectOK("UID FETCH 2 (FLAGS)"), `* 1 FETCH (UID 2 FLAGS (\Seen))`, `* 1 FETCH (FLAGS (\Seen) UID 2)`)
	phone.expectOK("STATUS INBOX (MESSAGES UIDVALIDITY HIGHESTMODSEQ)")
	phone.logout()
}

func largeMessageInParts(s *scenarioRun) {
	const size, part = 50 << 20, 4<<20 + 1
	film := attachment(size)
	d := s.login("amy")
	d.appendMessage("INBOX", film)
	d.expectOK("APPEND INBOX {+}", film) // RFC 7888: without waiting for the server
	d.expectOK("SELECT INBOX")
	d.expect(d.expectOK("FETCH 1:* (RFC822.SIZE)"), fmt.Sprintf("* 2 FETCH (RFC822.SIZE %d)", len(film)))
	d.expectOK("FETCH 1 (BODYSTRUCTURE)")

	var read bytes.Buffer
	for read.Len() < len(film) {
		d.expectOK(fmt.Sprintf("UID FETCH 1 (BODY.PEEK[]<%d.%d>)", read.Len(), part))
		if len(d.lastAnswer[0].Literals) != 1 || len(d.lastAnswer[0].Literals[0]) == 0 {
			s.Fatalf("no part at %d: %v", read.Len(), d.lastAnswer)
		}
		read.Write(d.lastAnswer[0].Literals[0])
	}
	if !bytes.Equal(read.Bytes(), film) {
		s.Error("the parts are not the message")
	}
	d.expectOK(fmt.Sprintf("FETCH 1 (BODY.PEEK[]<%d.100>)", len(film)-10)) // beyond the end
	d.expectOK("FETCH 1 (BODY.PEEK[1] BODY.PEEK[2.MIME] BODY.PEEK[HEADER])")
	d.expectOK("FETCH 2 (BODY.PEEK[])")
	if !bytes.Equal(d.lastAnswer[0].Literals[0], film) {
		s.Error("the second copy is not the message")
	}
	d.expectOK(`STORE 1:* +FLAGS.SILENT (\Deleted)`)
	d.expectOK("CLOSE")
	d.logout()
}

func quotaIsEnforced(s *scenarioRun) {
	if testbed.HasCyrus() {
		s.Skip("the test bed supports quotas with Dovecot only")
	}
	d := s.login("small")
	d.expect(d.expectOK("GETQUOTAROOT INBOX"), `* QUOTA "User quota" (STORAGE 0 1024)`)
	for range 3 {
		d.appendMessage("INBOX", messageOfSize(300<<10, "a report"))
	}
	d.expect(d.expectOK(`GETQUOTA "User quota"`), `* QUOTA "User quota" (STORAGE 900 1024)`)
	d.expect(d.expectNO("APPEND INBOX {}", messageOfSize(300<<10, "one too many")),
		"tag NO [OVERQUOTA] Quota exceeded (mailbox for user is full).")
	d.expectOK("SELECT INBOX")
	d.expectOK(`STORE 1 +FLAGS.SILENT (\Deleted)`)
	d.expectOK("EXPUNGE")
	d.appendMessage("INBOX", messageOfSize(300<<10, "the fourth"))
	d.expectNO(`SETQUOTA "User quota" (STORAGE 9999999)`)
}

func mailboxIsShared(s *scenarioRun) {
	if testbed.HasCyrus() {
		s.Skip("the names of shared mailboxes are Dovecot's")
	}
	amy := s.login("amy")
	bobs, team := s.account("bob"), "shared/"+amy.user+"/Team"
	amy.expect(amy.expectOK("NAMESPACE"), `* NAMESPACE (("" "/")) (("shared/" "/")) NIL`)
	amy.expectOK("CREATE Team")
	amy.appendMessage("Team", newMessage("rules"))
	amy.expectOK("SETACL Team " + bobs + " lrswi")
	amy.expectOK("GETACL Team")
	amy.expectOK("LISTRIGHTS Team " + bobs)
	amy.expectOK("SELECT Team")

	bob := s.login("bob")
	bob.expect(bob.expectOK(`LIST "" *`), `* LIST (\HasNoChildren \UnMarked) "/" shared/amy/Team`)
	bob.expectOK("MYRIGHTS " + team)
	bob.expect(bob.expectOK("SELECT "+team), "* 1 EXISTS")
	bob.expectOK("FETCH 1 (BODY.PEEK[])")
	amy.startIdle()
	bob.appendMessage(team, newMessage("agreed"))
	amy.awaitResponse("* 2 EXISTS")
	bob.expectOK(`STORE 1 +FLAGS (\Seen)`)
	amy.awaitResponse(`* 1 FETCH (FLAGS (\Seen))`)
	amy.endIdle()
	// Without the rights t and e he cannot mark messages as deleted or expunge them.
	bob.expectOK(`STORE 1 +FLAGS (\Deleted)`)
	bob.expectOK("EXPUNGE")
	bob.expect(bob.expectOK("SEARCH ALL"), "* SEARCH 1 2")
	bob.expectNO("SETACL " + team + " " + bobs + " lrswipkxtea")
	bob.expectNO("SELECT shared/" + amy.user + "/INBOX")
	bob.logout()

	amy.expectOK("DELETEACL Team " + bobs)
	bob = s.login("bob")
	bob.expectNO("SELECT " + team)
}

func twentyConnections(s *scenarioRun) {
	const n = 20
	all := make([]*scenarioClient, n)
	for i := range all {
		all[i] = s.login("amy")
	}
	together := func(command string) {
		for _, d := range all {
			d.send(command)
		}
		for _, d := range all {
			d.receive()
		}
	}
	// One message first, because Dovecot 2.3 may deadlock when twenty sessions create INBOX.
	all[0].appendMessage("INBOX", newMessage("hello"))
	together("SELECT INBOX")
	all[0].appendMessage("INBOX", messageOfSize(100<<10, "to all"))
	together("NOOP")
	together("FETCH 2 (BODY.PEEK[])")
	for _, d := range all[1:] {
		d.startIdle()
	}
	all[0].appendMessage("INBOX", newMessage("to the idle"))
	for _, d := range all[1:] {
		d.awaitResponse("* 3 EXISTS")
		d.endIdle()
	}
	together("LOGOUT")
}

func commandsTogether(s *scenarioRun) {
	d := s.login("amy")
	d.appendMessage("INBOX", newMessage("one"))
	d.expectOK("SELECT INBOX")
	// In one write, so that they arrive in one buffer.
	const n = 50
	batch := strings.Repeat("b FETCH 1 (UID BODY.PEEK[TEXT])\r\n", n)
	if _, err := io.WriteString(d.raw, batch); err != nil {
		s.Fatal(err)
	}
	// The server may execute several at once and interleave their responses.
	seen := map[string]int{}
	for seen["b OK"] < n {
		r, err := d.raw.Read()
		if err != nil {
			s.Fatalf("%v, after %v", err, seen)
		}
		seen[taggedOK.ReplaceAllString(r.String(), "b OK")]++
	}
	if len(seen) != 2 || seen[`* 1 FETCH (UID 1 BODY[TEXT] {20}"This is about one.\r\n")`] != n {
		s.Errorf("%d times the same command gave %v", n, seen)
	}
	// A command with a literal and the next one, without waiting for either.
	if _, err := io.WriteString(d.raw, "x1 SEARCH SUBJECT {3+}\r\none\r\nx2 NOOP\r\nx3 LOGOUT\r\n"); err != nil {
		s.Fatal(err)
	}
	got, err := d.raw.ReadUntil("x3")
	if err != nil {
		s.Fatal(err)
	}
	d.expect(d.checkAnswer("OK", "three commands", got), "* SEARCH 1")
}

func TestReusePassesIMAPScenarios(t *testing.T) {
	backend := startScenarioBackend(t)
	checkScenariosFiltered(t, backend, muxGatewayEndpoint(t, backend, event.ModeReuse), filterTranscript)
}

func TestResumePassesIMAPScenarios(t *testing.T) {
	backend := startScenarioBackend(t)
	checkScenariosFiltered(t, backend, muxGatewayEndpoint(t, backend, event.ModeResume), filterTranscript)
}

// taggedOK matches a tagged OK with any text.
var taggedOK = regexp.MustCompile(`^b OK .*`)

// filterTranscript removes from a transcript what a gateway that reads commands may change:
// human-readable text and the list of capabilities.
func filterTranscript(transcript []string) []string {
	var kept []string
	for _, line := range transcript {
		line = gatewayCapabilities.ReplaceAllString(line, "")
		line = strings.Replace(line, "* ENABLED CONDSTORE QRESYNC", "* ENABLED QRESYNC", 1) // which implies the other
		kept = append(kept, gatewayText.ReplaceAllString(line, "$1"))
	}
	return kept
}

var (
	gatewayCapabilities = regexp.MustCompile(` \[CAPABILITY [^]]*\]`)
	gatewayText         = regexp.MustCompile(`(S: (?:(?:tag|x3) (?:OK|NO|BAD)(?: \[[^]]*\])?|\* CAPABILITY|\* BYE|\* ID|\+)).*`)
)
