package tests

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/proxy/mux"
)

// What IMAP promises to people, each promise as a script: what their devices
// say, and what they must see. promises plays every script twice, directly at
// the backend and through a gateway, and wants the devices to see the same.

// promises is run by every mode of the gateway.
func promises(t *testing.T, backend mailServer, through entrance) {
	promisesBut(t, backend, through, func(transcript []string) []string { return transcript })
}

// promisesBut compares what but leaves of the transcripts.
func promisesBut(t *testing.T, backend mailServer, through entrance, but func([]string) []string) {
	if testbed.HasCyrus() { // which goes on offering ways to log in behind the login
		other := but
		but = func(transcript []string) []string { return other(promised(transcript)) }
	}
	for i, promise := range []struct {
		name  string
		keeps func(*script)
	}{
		{"two devices see each other's changes while idle", seenWhileIdle},
		{"two devices see each other's changes by NOOP", seenByNoop},
		{"mailboxes are made, renamed, subscribed and deleted", mailboxesChange},
		{"messages are copied, moved and removed by UID", messagesMove},
		{"the server searches", serverSearches},
		{"the server sorts and threads", serverSortsAndThreads},
		{"a device that was offline catches up", offlineCatchesUp},
		{"a large message is stored and read in parts", largeMessageInParts},
		{"quota is told and kept", quotaIsKept},
		{"a mailbox is shared with another user", mailboxIsShared},
		{"twenty connections of one user work at once", twentyConnections},
		{"commands sent together are answered in order", commandsTogether},
	} {
		t.Run(promise.name, func(t *testing.T) {
			t.Parallel()
			// Every run has accounts of its own, with names of one length.
			direct := play(t, promise.keeps, directly(backend), fmt.Sprintf("d%02d", i))
			if d := differ(but(direct), but(play(t, promise.keeps, through, fmt.Sprintf("g%02d", i)))); d != "" {
				t.Errorf("the gateway (+++) differs from the backend (---):\n%s", d)
			}
		})
	}
}

// promiseBackend is a server on which every promise can be kept; only a user
// named small has little room.
func promiseBackend(t *testing.T) mailServer {
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

func TestTheGatewayKeepsWhatIMAPPromises(t *testing.T) {
	backend := promiseBackend(t)
	promises(t, backend, gateway(t, backend))
}

func TestTheGatewayKeepsWhatIMAPPromisesWithoutTLS(t *testing.T) {
	backend := promiseBackend(t)
	promises(t, backend, plainGateway(t, backend))
}

// The comparison itself must notice a single response too many.
func TestAResponseNobodySentIsNoticed(t *testing.T) {
	backend := promiseBackend(t)
	liar := faultproxy.Start(t, backend.Where().Plain)
	through := func(testing.TB, string) endpoint { return endpoint{address: liar.Address()} }
	scenario := func(s *script) {
		liar.Set(faultproxy.ToClient, faultproxy.Rules{})
		d := s.login("amy")
		liar.Set(faultproxy.ToClient, faultproxy.Rules{
			Faults: []faultproxy.Fault{{Do: faultproxy.Inject, Bytes: []byte("* 7 EXISTS\r\n")}},
		})
		d.ok("NOOP")
	}
	direct := play(t, scenario, directly(backend), "d")
	if d := differ(direct, play(t, scenario, through, "g")); d == "" {
		t.Error("a transcript with an injected response was taken for equal")
	}
}

func TestEveryWayIntoTheBackendShowsTheSame(t *testing.T) {
	backend := promiseBackend(t)
	at := backend.Where()
	secured := at.CA.ClientTLS(testbed.DovecotName)
	direct := play(t, messagesMove, directly(backend), "d")
	for way, e := range map[string]endpoint{
		"plain":    {address: at.Plain},
		"STARTTLS": {address: at.Plain, tls: secured, starttls: true},
	} {
		through := func(testing.TB, string) endpoint { return e }
		if d := differ(direct, play(t, messagesMove, through, strings.ToLower(way))); d != "" {
			t.Errorf("%s:\n%s", way, d)
		}
	}
}

func seenWhileIdle(s *script) {
	phone, laptop := s.login("amy"), s.login("amy")
	phone.ok("SELECT INBOX")
	laptop.ok("SELECT INBOX")
	phone.startIdle()
	laptop.append("INBOX", mail("lunch"))
	phone.await("* 1 EXISTS")
	laptop.ok(`STORE 1 +FLAGS (\Flagged)`)
	phone.await(`* 1 FETCH (FLAGS (\Flagged))`)
	laptop.ok(`STORE 1 +FLAGS (\Deleted)`)
	phone.await(`* 1 FETCH (FLAGS (\Flagged \Deleted))`)
	laptop.ok("EXPUNGE")
	phone.await("* 1 EXPUNGE")
	phone.endIdle()

	laptop.startIdle()
	phone.append("INBOX", mail("supper"), `\Seen`)
	laptop.await("* 1 EXISTS")
	laptop.endIdle()
	phone.want(phone.ok("FETCH 1 (FLAGS UID)"), `* 1 FETCH (FLAGS (\Seen) UID 2)`)
	laptop.want(laptop.ok("FETCH 1 (FLAGS UID)"), `* 1 FETCH (FLAGS (\Seen) UID 2)`)
	phone.logout()
	laptop.logout()
}

func seenByNoop(s *script) {
	phone, laptop := s.login("amy"), s.login("amy")
	phone.ok("SELECT INBOX")
	laptop.ok("SELECT INBOX")
	for _, subject := range []string{"one", "two", "three"} {
		laptop.append("INBOX", mail(subject))
	}
	phone.want(phone.ok("NOOP"), "* 3 EXISTS")
	laptop.ok(`STORE 2 FLAGS (\Seen $Forwarded)`)
	phone.want(phone.ok("NOOP"), `* 2 FETCH (FLAGS (\Seen $Forwarded))`)
	laptop.ok(`STORE 1 +FLAGS.SILENT (\Deleted)`)
	laptop.want(laptop.ok("EXPUNGE"), "* 1 EXPUNGE")
	// RFC 9051 §7.5.1: no EXPUNGE during FETCH, or numbers would shift under it.
	for _, line := range phone.ok("FETCH 2:3 (UID)") {
		if line == "S: * 1 EXPUNGE" {
			phone.s.Error("EXPUNGE during FETCH")
		}
	}
	phone.want(phone.ok("NOOP"), "* 1 EXPUNGE")
	phone.want(phone.ok("FETCH 1 (UID)"), "* 1 FETCH (UID 2)")
	// From here the other way round.
	phone.ok(`STORE 1 -FLAGS (\Seen)`)
	laptop.want(laptop.ok("NOOP"), "* 1 FETCH (FLAGS ($Forwarded))")
	phone.want(phone.ok("STATUS INBOX (MESSAGES UIDNEXT UNSEEN)"), "* STATUS INBOX (MESSAGES 2 UIDNEXT 4 UNSEEN 2)")
}

func mailboxesChange(s *script) {
	phone, laptop := s.login("amy"), s.login("amy")
	phone.ok("CREATE Work/2024/July")
	phone.ok("CREATE {}", []byte("R&AOk-sum&AOk-s")) // Résumés, in modified UTF-7 (RFC 3501 §5.1.3)
	if !testbed.HasCyrus() {                         // which allows neither
		phone.ok(`CREATE "with \"quotes\" and \\backslash"`)
	}
	laptop.want(laptop.ok(`LIST "" *`), `* LIST (\HasNoChildren) "/" Work/2024/July`)
	laptop.ok("SUBSCRIBE Work/2024/July")
	phone.want(phone.ok(`LSUB "" *`), `* LSUB () "/" Work/2024/July`)
	phone.ok("RENAME Work/2024 Work/old")
	laptop.want(laptop.ok(`LIST "" Work/old/%`), `* LIST (\HasNoChildren) "/" Work/old/July`)
	laptop.no("SELECT Work/2024/July")
	laptop.append("Work/old/July", mail("a plan"))
	phone.want(phone.ok("STATUS Work/old/July (MESSAGES UNSEEN)"), "* STATUS Work/old/July (MESSAGES 1 UNSEEN 1)")
	// RFC 5258 and RFC 5819: one round trip for a whole folder list.
	phone.ok(`LIST (SUBSCRIBED RECURSIVEMATCH) "" * RETURN (CHILDREN STATUS (MESSAGES UIDVALIDITY))`)
	laptop.ok("UNSUBSCRIBE Work/2024/July")
	laptop.ok("DELETE Work/old/July")
	phone.no("DELETE Work/old/July")
	if !testbed.HasCyrus() { // where every user has one from the start
		phone.ok("CREATE INBOX") // the real one exists only once mail has come
	}
	phone.no("CREATE INBOX")
	phone.no("APPEND Nowhere {}", mail("lost"))
	phone.ok(`LIST "" *`)
	phone.ok(`LSUB "" *`)
}

func messagesMove(s *script) {
	d := s.login("amy")
	d.ok("CREATE Archive")
	for i := range 5 {
		d.append("INBOX", mail(fmt.Sprint("number ", i+1)))
	}
	d.ok("SELECT INBOX")
	d.ok("UID COPY 1:2 Archive")
	d.ok("UID MOVE 3,5 Archive")
	d.ok(`UID STORE 1,2,4 +FLAGS.SILENT (\Deleted)`)
	d.want(d.ok("UID EXPUNGE 2"), "* 2 EXPUNGE")
	d.no("UID COPY 1 Nowhere")
	d.want(d.ok("SEARCH ALL"), "* SEARCH 1 2")
	d.ok("CLOSE") // removes what is \Deleted, in silence
	d.want(d.ok("EXAMINE INBOX"), "* 0 EXISTS")
	d.ok("UNSELECT")
	d.want(d.ok("SELECT Archive"), "* 4 EXISTS")
	d.ok("FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER.FIELDS (SUBJECT)])")
	d.ok("FETCH 1 BODY[]")
	d.want(d.ok("FETCH 1 FLAGS"), `* 1 FETCH (FLAGS (\Seen))`)
	d.logout()
}

func serverSearches(s *script) {
	d := s.login("amy")
	d.append("INBOX", mail("the budget"), `\Seen`)
	d.append("INBOX", mail("lunch", "Cc: budget@example.org"), `\Flagged`)
	d.append("INBOX", mail("=?utf-8?q?Caf=C3=A9?="))
	d.append("INBOX", mailOf(20_000, "long"), `\Answered`, `\Seen`)
	d.ok("SELECT INBOX")
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
			d.want(d.ok("SEARCH TEXT {}", []byte("dull boy")), "* SEARCH "+search.want)
			continue
		}
		d.want(d.ok("SEARCH "+search.key), "* SEARCH "+search.want)
	}
	d.want(d.ok("SEARCH CHARSET UTF-8 SUBJECT {}", []byte("CAFÉ")), "* SEARCH 3")
	if !testbed.HasCyrus() { // which finds nothing, and says OK
		d.no("SEARCH CHARSET X-UNKNOWN SUBJECT a")
	}
	found := d.ok("UID SEARCH RETURN (MIN MAX COUNT ALL) SEEN")
	tag, _, _ := strings.Cut(d.last[len(d.last)-1].Text, " ")
	d.want(found, `* ESEARCH (TAG "`+tag+`") UID MIN 1 MAX 4 ALL 1,4 COUNT 2`, `* ESEARCH (TAG "`+tag+`") UID COUNT 2 MIN 1 MAX 4 ALL 1,4`)
	if !strings.Contains(d.said[0], " SEARCHRES") {
		return
	}
	d.ok("UID SEARCH RETURN (SAVE) UNSEEN") // RFC 5182: $ is what was found
	d.want(d.ok("UID FETCH $ (FLAGS)"), `* 2 FETCH (UID 2 FLAGS (\Flagged))`, `* 2 FETCH (FLAGS (\Flagged) UID 2)`)
}

func serverSortsAndThreads(s *script) {
	d := s.login("amy")
	d.append("INBOX", thread(4, "zebra"))
	d.append("INBOX", thread(1, "plans"))
	d.append("INBOX", thread(2, "Re: plans", "<1@example.org>"))
	d.append("INBOX", thread(3, "Re: plans", "<1@example.org>", "<2@example.org>"))
	d.append("INBOX", thread(5, "Re: plans", "<1@example.org>"))
	d.ok("SELECT INBOX")
	d.want(d.ok("THREAD REFERENCES UTF-8 ALL"), "* THREAD (2 (3 4)(5))(1)")
	d.want(d.ok("UID THREAD REFS US-ASCII SUBJECT plans"), "* THREAD (2 (3 4)(5))")
	d.ok("THREAD ORDEREDSUBJECT UTF-8 ALL")
	d.want(d.ok("SORT (DATE) UTF-8 ALL"), "* SORT 2 3 4 1 5")
	d.want(d.ok("SORT (REVERSE SUBJECT DATE) UTF-8 ALL"), "* SORT 1 2 3 4 5")
	d.want(d.ok("UID SORT (REVERSE DATE) US-ASCII SUBJECT plans"), "* SORT 5 4 3 2")
	d.ok("SORT (DISPLAYFROM SIZE) UTF-8 ALL")
	d.ok("UID SORT RETURN (MIN MAX COUNT) (REVERSE DATE) UTF-8 ALL")
}

func offlineCatchesUp(s *script) {
	phone, laptop := s.login("amy"), s.login("amy")
	for i := range 10 {
		laptop.append("INBOX", mail(fmt.Sprint("number ", i+1)))
	}
	phone.ok("SELECT INBOX (CONDSTORE)")
	validity, known := phone.number("UIDVALIDITY"), phone.number("HIGHESTMODSEQ")
	phone.logout()

	laptop.ok("SELECT INBOX")
	laptop.ok(`STORE 2 +FLAGS (\Seen)`)
	laptop.ok(`STORE 3,5,10 +FLAGS (\Deleted)`)
	laptop.ok("EXPUNGE")
	laptop.append("INBOX", mail("the eleventh"), `\Flagged`)

	// With CONDSTORE alone (RFC 7162 §3.1) the phone asks for changes itself.
	phone = s.login("amy")
	phone.ok("SELECT INBOX (CONDSTORE)")
	phone.ok("UID FETCH 1:* (FLAGS) (CHANGEDSINCE " + known + ")")
	phone.want(phone.ok("UID SEARCH ALL"), "* SEARCH 1 2 4 6 7 8 9 11")
	phone.ok("UID SEARCH MODSEQ " + known)
	phone.logout()

	// With QRESYNC (RFC 7162 §3.2) SELECT tells it everything.
	phone = s.login("amy")
	if enabled := phone.ok("ENABLE QRESYNC")[0]; !strings.HasPrefix(enabled, "S: * ENABLED ") || !strings.HasSuffix(enabled, " QRESYNC") {
		s.Errorf("ENABLE QRESYNC gave %q", enabled)
	}
	got := phone.ok(fmt.Sprintf("SELECT INBOX (QRESYNC (%s %s 1:10))", validity, known))
	phone.want(got, "* VANISHED (EARLIER) 3,5,10")
	phone.ok("UID FETCH 1:* (FLAGS) (CHANGEDSINCE " + known + " VANISHED)")
	laptop.ok(`UID STORE 1 +FLAGS.SILENT (\Deleted)`)
	laptop.ok("EXPUNGE")
	phone.want(phone.ok("NOOP"), "* VANISHED 1")
	// The laptop has changed message 2 since: the phone's change must not win.
	phone.ok("UID STORE 2 (UNCHANGEDSINCE " + known + `) FLAGS (\Draft)`)
	phone.want(laptop.ok("UID FETCH 2 (FLAGS)"), `* 1 FETCH (UID 2 FLAGS (\Seen))`, `* 1 FETCH (FLAGS (\Seen) UID 2)`)
	phone.ok("STATUS INBOX (MESSAGES UIDVALIDITY HIGHESTMODSEQ)")
	phone.logout()
}

func largeMessageInParts(s *script) {
	const size, part = 50 << 20, 4<<20 + 1
	film := attachment(size)
	d := s.login("amy")
	d.append("INBOX", film)
	d.ok("APPEND INBOX {+}", film) // RFC 7888: without waiting for the server
	d.ok("SELECT INBOX")
	d.want(d.ok("FETCH 1:* (RFC822.SIZE)"), fmt.Sprintf("* 2 FETCH (RFC822.SIZE %d)", len(film)))
	d.ok("FETCH 1 (BODYSTRUCTURE)")

	var read bytes.Buffer
	for read.Len() < len(film) {
		d.ok(fmt.Sprintf("UID FETCH 1 (BODY.PEEK[]<%d.%d>)", read.Len(), part))
		if len(d.last[0].Literals) != 1 || len(d.last[0].Literals[0]) == 0 {
			s.Fatalf("no part at %d: %v", read.Len(), d.last)
		}
		read.Write(d.last[0].Literals[0])
	}
	if !bytes.Equal(read.Bytes(), film) {
		s.Error("the parts are not the message")
	}
	d.ok(fmt.Sprintf("FETCH 1 (BODY.PEEK[]<%d.100>)", len(film)-10)) // over the end
	d.ok("FETCH 1 (BODY.PEEK[1] BODY.PEEK[2.MIME] BODY.PEEK[HEADER])")
	d.ok("FETCH 2 (BODY.PEEK[])")
	if !bytes.Equal(d.last[0].Literals[0], film) {
		s.Error("the second copy is not the message")
	}
	d.ok(`STORE 1:* +FLAGS.SILENT (\Deleted)`)
	d.ok("CLOSE")
	d.logout()
}

func quotaIsKept(s *script) {
	if testbed.HasCyrus() {
		s.Skip("the test bed gives quotas to users of Dovecot alone")
	}
	d := s.login("small")
	d.want(d.ok("GETQUOTAROOT INBOX"), `* QUOTA "User quota" (STORAGE 0 1024)`)
	for range 3 {
		d.append("INBOX", mailOf(300<<10, "a report"))
	}
	d.want(d.ok(`GETQUOTA "User quota"`), `* QUOTA "User quota" (STORAGE 900 1024)`)
	d.want(d.no("APPEND INBOX {}", mailOf(300<<10, "one too many")),
		"tag NO [OVERQUOTA] Quota exceeded (mailbox for user is full).")
	d.ok("SELECT INBOX")
	d.ok(`STORE 1 +FLAGS.SILENT (\Deleted)`)
	d.ok("EXPUNGE")
	d.append("INBOX", mailOf(300<<10, "the fourth"))
	d.no(`SETQUOTA "User quota" (STORAGE 9999999)`)
}

func mailboxIsShared(s *script) {
	if testbed.HasCyrus() {
		s.Skip("the names of shared mailboxes are Dovecot's")
	}
	amy := s.login("amy")
	bobs, team := s.name("bob"), "shared/"+amy.user+"/Team"
	amy.want(amy.ok("NAMESPACE"), `* NAMESPACE (("" "/")) (("shared/" "/")) NIL`)
	amy.ok("CREATE Team")
	amy.append("Team", mail("rules"))
	amy.ok("SETACL Team " + bobs + " lrswi")
	amy.ok("GETACL Team")
	amy.ok("LISTRIGHTS Team " + bobs)
	amy.ok("SELECT Team")

	bob := s.login("bob")
	bob.want(bob.ok(`LIST "" *`), `* LIST (\HasNoChildren \UnMarked) "/" shared/amy/Team`)
	bob.ok("MYRIGHTS " + team)
	bob.want(bob.ok("SELECT "+team), "* 1 EXISTS")
	bob.ok("FETCH 1 (BODY.PEEK[])")
	amy.startIdle()
	bob.append(team, mail("agreed"))
	amy.await("* 2 EXISTS")
	bob.ok(`STORE 1 +FLAGS (\Seen)`)
	amy.await(`* 1 FETCH (FLAGS (\Seen))`)
	amy.endIdle()
	// Without t and e he marks nothing as deleted and removes nothing.
	bob.ok(`STORE 1 +FLAGS (\Deleted)`)
	bob.ok("EXPUNGE")
	bob.want(bob.ok("SEARCH ALL"), "* SEARCH 1 2")
	bob.no("SETACL " + team + " " + bobs + " lrswipkxtea")
	bob.no("SELECT shared/" + amy.user + "/INBOX")
	bob.logout()

	amy.ok("DELETEACL Team " + bobs)
	bob = s.login("bob")
	bob.no("SELECT " + team)
}

func twentyConnections(s *script) {
	const n = 20
	all := make([]*device, n)
	for i := range all {
		all[i] = s.login("amy")
	}
	together := func(command string) {
		for _, d := range all {
			d.send(command)
		}
		for _, d := range all {
			d.take()
		}
	}
	// First one alone: Dovecot 2.3 may lock itself up when twenty make one INBOX.
	all[0].append("INBOX", mail("hello"))
	together("SELECT INBOX")
	all[0].append("INBOX", mailOf(100<<10, "to all"))
	together("NOOP")
	together("FETCH 2 (BODY.PEEK[])")
	for _, d := range all[1:] {
		d.startIdle()
	}
	all[0].append("INBOX", mail("to the idle"))
	for _, d := range all[1:] {
		d.await("* 3 EXISTS")
		d.endIdle()
	}
	together("LOGOUT")
}

func commandsTogether(s *script) {
	d := s.login("amy")
	d.append("INBOX", mail("one"))
	d.ok("SELECT INBOX")
	// In one write, so that they meet in one buffer wherever they pass.
	const n = 50
	batch := strings.Repeat("b FETCH 1 (UID BODY.PEEK[TEXT])\r\n", n)
	if _, err := io.WriteString(d.raw, batch); err != nil {
		s.Fatal(err)
	}
	// The server may work on several at once: their answers may mingle.
	seen := map[string]int{}
	for seen["b OK"] < n {
		r, err := d.raw.Read()
		if err != nil {
			s.Fatalf("%v, after %v", err, seen)
		}
		seen[completed.ReplaceAllString(r.String(), "b OK")]++
	}
	if len(seen) != 2 || seen[`* 1 FETCH (UID 1 BODY[TEXT] {20}"This is about one.\r\n")`] != n {
		s.Errorf("%d times the same command gave %v", n, seen)
	}
	// A command with a literal and the next one, without waiting for either.
	if _, err := io.WriteString(d.raw, "x1 SEARCH SUBJECT {3+}\r\none\r\nx2 NOOP\r\nx3 LOGOUT\r\n"); err != nil {
		s.Fatal(err)
	}
	got, err := d.raw.Until("x3")
	if err != nil {
		s.Fatal(err)
	}
	d.want(d.finish("OK", "three commands", got), "* SEARCH 1")
}

func TestReuseKeepsWhatIMAPPromises(t *testing.T) {
	backend := promiseBackend(t)
	promisesBut(t, backend, muxGateway(t, backend, mux.Reuse), promised)
}

func TestResumeKeepsWhatIMAPPromises(t *testing.T) {
	backend := promiseBackend(t)
	promisesBut(t, backend, muxGateway(t, backend, mux.Resume), promised)
}

// completed is a tagged OK, however the server words it.
var completed = regexp.MustCompile(`^b OK .*`)

// promised is a transcript without what a gateway may say in its own words where
// it reads the commands: human text, and which capabilities it offers.
func promised(transcript []string) []string {
	var kept []string
	for _, line := range transcript {
		line = ownCapabilities.ReplaceAllString(line, "")
		line = strings.Replace(line, "* ENABLED CONDSTORE QRESYNC", "* ENABLED QRESYNC", 1) // which implies the other
		kept = append(kept, ownWords.ReplaceAllString(line, "$1"))
	}
	return kept
}

var (
	ownCapabilities = regexp.MustCompile(` \[CAPABILITY [^]]*\]`)
	ownWords        = regexp.MustCompile(`(S: (?:(?:tag|x3) (?:OK|NO|BAD)(?: \[[^]]*\])?|\* CAPABILITY|\* BYE|\* ID|\+)).*`)
)
