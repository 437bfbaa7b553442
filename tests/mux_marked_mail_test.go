package tests

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

const (
	markedUserCount  = 200
	dovecotUserCount = 60 // the first users; the others have the stub
)

// Two hundred users, each with a mark in all their data, share pools of reused upstreams.
// Most sessions are aborted at a random point. No user ever gets a byte of another user or
// a response to another session.
func TestReusedConnectionsLeakNothingBetweenUsers(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	real := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	users := map[string]string{}
	var passwords strings.Builder
	for i := range markedUserCount {
		users[markedUser(i)] = "stub"
		if i < dovecotUserCount {
			users[markedUser(i)] = "real"
		}
		fmt.Fprintf(&passwords, "%s:{PLAIN}%s\n", markedUser(i), password)
	}
	// At full size some upstreams are reused and some expire. Otherwise the time is long
	// enough for reuse even on a slow machine.
	mode := muxMode(event.ModeReuse, fmt.Sprintf(", pool_idle_timeout: %ds", testSize(60, 2)))
	backends := map[string]string{
		"real": backendConf(real, event.NoTLS) + mode,
		"stub": plainBackend(testkit.StartIMAP(t, serveMarkedBackend).Addr()) + mode,
	}
	g := startGateway(t, ca, staticBackends(backends, users), fmt.Sprintf("auth: {methods: [file], file: {path: %q}}", writeText(t, "passwd", passwords.String())))
	storeMarkedMail(t, real)

	seed := testbed.Seed(t)
	p := isolationTest{g: g, sessions: int64(testSize(600, 100_000))}
	var clients errgroup.Group
	start := time.Now()
	for range 24 {
		clients.Go(func() error { return p.runSessions(seed) })
	}
	if err := clients.Wait(); err != nil {
		t.Error(err)
	}
	p.checkResults(t, time.Since(start))
}

// checkResults checks and logs the counts.
func (p *isolationTest) checkResults(t *testing.T, elapsed time.Duration) {
	reused := p.g.sumMetric("imapgate_mux_pool_reused_total")
	t.Logf("%d sessions in %v, %d at Dovecot: %d whole, %d broken off; %.0f connections used again; %d marks seen",
		p.sessions, elapsed, p.dovecotSessions.Load(), p.completed.Load(), p.aborted.Load(), reused, p.marksSeen.Load())
	if p.foreignMarks.Load() > 0 {
		t.Errorf("%d marks or tags of others were seen, the first here: %v", p.foreignMarks.Load(), p.firstForeign.Load())
	}
	if p.completed.Load() < p.sessions/5 || p.aborted.Load() < p.sessions/5 || p.marksSeen.Load() < p.sessions {
		t.Error("too few sessions of one kind")
	}
	if reused < float64(p.sessions)/5 {
		t.Errorf("only %.0f connections were used again", reused)
	}
	if strings.Contains(p.g.readFile("audit"), "identity_violation") {
		t.Error("a login reached another user")
	}
}

func markedUser(i int) string { return fmt.Sprintf("user%d", i) }

// userMark returns the mark in every line, name and flag of a user.
func userMark(user string) string { return "of=" + user + ";" }

// storeMarkedMail fills the mailboxes at Dovecot.
func storeMarkedMail(t *testing.T, backend *testbed.Dovecot) {
	t.Helper()
	var all errgroup.Group
	all.SetLimit(8)
	for i := range dovecotUserCount {
		all.Go(func() error {
			user := markedUser(i)
			c, err := dialIMAP(directEndpoint(backend)(t, user), "")
			if err != nil {
				return err
			}
			defer c.Close() // all responses were read
			for _, command := range []string{
				"LOGIN " + user + " " + password, "APPEND INBOX (" + userMark(user) + ") {}",
				"CREATE " + userMark(user), "APPEND " + userMark(user) + " {}",
			} {
				var literals [][]byte
				if strings.HasSuffix(command, "{}") {
					literals = append(literals, markedMail(user))
				}
				if err := checkOK(c.Do(command, literals...)); err != nil {
					return fmt.Errorf("%s: %w", command, err)
				}
			}
			return nil
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
}

// serveMarkedBackend serves a stub that accepts every login and marks every response with
// the user.
func serveMarkedBackend(conn *testkit.Conn) {
	const capabilities = "CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID UNSELECT IDLE AUTH=PLAIN"
	r, w := conn.R, bufio.NewWriterSize(conn, 4<<10)
	_, _ = w.WriteString("* OK [" + capabilities + "] ready\r\n") // Flush has the error
	mark := ""
	for {
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		tag, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if size, ok := literalSize(strings.ReplaceAll(rest, "+}", "}")); ok {
			if !strings.HasSuffix(rest, "+}") {
				_, _ = w.WriteString("+ continue\r\n")
				_ = w.Flush() // the next read has the error
			}
			if _, err := io.CopyN(io.Discard, r, int64(size)+2); err != nil {
				return
			}
		}
		name, argument, _ := strings.Cut(rest, " ")
		switch name {
		case "AUTHENTICATE":
			_, response, _ := strings.Cut(argument, " ")
			plain, _ := base64.StdEncoding.DecodeString(response) // invalid base64 gives no user
			mark = userMark(strings.Split(string(plain)+"\x00\x00", "\x00")[1])
			_, _ = w.WriteString(tag + " OK [" + capabilities + "] welcome\r\n")
			continue
		case "IDLE":
			_, _ = w.WriteString("+ idling\r\n* OK " + mark + "\r\n")
			if w.Flush() != nil {
				return
			}
			if _, err := r.ReadString('\n'); err != nil {
				return
			}
		case "SELECT", "EXAMINE":
			_, _ = fmt.Fprintf(w, "* FLAGS (%s)\r\n* 1 EXISTS\r\n* OK [UIDVALIDITY 1] %s\r\n* OK [UIDNEXT 2] %s\r\n", mark, mark, mark)
		case "FETCH":
			text := strings.Repeat("all of this line is "+mark+" and of no other user\r\n", 100)
			_, _ = fmt.Fprintf(w, "* 1 FETCH (FLAGS (%s) BODY[] {%d}\r\n%s)\r\n", mark, len(text), text)
		case "LIST":
			_, _ = fmt.Fprintf(w, "* LIST () \"/\" %s\r\n", mark)
		case "LOGOUT":
			_, _ = fmt.Fprintf(w, "* BYE %s\r\n%s OK %s\r\n", mark, tag, mark)
			_ = w.Flush() // closes anyway
			return
		case "UID": // SEARCH, by which the gateway fetches UIDs
			_, _ = w.WriteString("* SEARCH 1\r\n")
		case "UNSELECT", "NOOP":
		default:
			_, _ = fmt.Fprintf(w, "* STATUS %s (MESSAGES 1)\r\n", mark)
		}
		_, _ = w.WriteString(tag + " OK " + mark + "\r\n")
	}
}
