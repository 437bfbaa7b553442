package tests

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
)

const stormUserCount = 50

// Fifty users with marked mail on two backends run hundreds of sessions, many of which are
// aborted. No user ever gets a byte of another user's mail.
func TestInAStormOfSessionsUsersSeeOnlyTheirMail(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	users, upstreams := map[string]string{}, map[string]string{}
	backends := []*testbed.Dovecot{
		testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
		testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
	}
	upstreams["secured"], upstreams["plain"] = backendConf(backends[0], event.ImplicitTLS), backendConf(backends[1], event.NoTLS)
	for i := range stormUserCount {
		user := fmt.Sprintf("user%d", i)
		users[user] = []string{"secured", "plain"}[i%2]
		deliverDirect(t, backends[i%2], user, markedMail(user))
	}
	g := startGateway(t, ca, staticBackends(upstreams, users))

	seed := testbed.Seed(t)
	w := stormTest{g: g, sessions: int64(testSize(200, 20_000))}
	var clients errgroup.Group
	for range 24 {
		clients.Go(func() error { return w.runSessions(seed) })
	}
	if err := clients.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d sessions: %d whole, %d broken off; %d marks seen, %d of others",
		w.nextSession.Load()-24, w.completed.Load(), w.aborted.Load(), w.marksSeen.Load(), w.foreignMarks.Load())
	if w.foreignMarks.Load() > 0 {
		t.Errorf("%d marks of other users were received", w.foreignMarks.Load())
	}
	if w.completed.Load() < w.sessions/10 || w.aborted.Load() < w.sessions/10 {
		t.Error("too few sessions of one kind")
	}
	if violations := strings.Count(g.readFile("audit"), "identity_violation"); violations > 0 {
		t.Errorf("%d logins reached another user", violations)
	}
}

// markedMail returns a message of 16 KB in which every line names the user.
func markedMail(user string) []byte {
	m := newMessage("of=" + user + ";")
	for len(m) < 16<<10 {
		m = append(m, "all of this line is of="+user+"; and of no other user\r\n"...)
	}
	return m
}

// markOwners yields the users named in a line of marked mail.
func markOwners(line string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			_, rest, _ := strings.Cut(line, "of=")
			owner, after, complete := strings.Cut(rest, ";")
			if !complete || !yield(owner) {
				return
			}
			line = after
		}
	}
}

// stormTest is a gateway and the counts of its sessions.
type stormTest struct {
	// Set once.
	g        *gateway
	sessions int64

	nextSession, completed, aborted, marksSeen, foreignMarks atomic.Int64
}

// runSessions runs sessions one after the other until enough were run. A session depends
// only on the seed and its number.
func (w *stormTest) runSessions(seed uint64) error {
	for n := w.nextSession.Add(1); n <= w.sessions; n = w.nextSession.Add(1) {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		user := fmt.Sprintf("user%d", random.IntN(stormUserCount))
		e := w.g.endpoint(listeners[random.IntN(2)*2]) // implicit or none
		if err := w.runSession(e, user, random); err != nil {
			return fmt.Errorf("a session of %s: %w", user, err)
		}
	}
	return nil
}

// runSession fetches its user's mail, pipelined or command by command, and may abort after
// any received byte.
func (w *stormTest) runSession(e endpoint, user string, random *rand.Rand) error {
	conn, err := net.DialTimeout("tcp", e.address, Timeout)
	if err != nil {
		return err
	}
	tcp := conn.(*net.TCPConn)
	defer tcp.Close() // in any state
	if e.tls != nil {
		conn = tls.Client(conn, e.tls)
	}
	readLimit := int64(1 << 30)
	if random.IntN(2) == 0 {
		readLimit = 1 + random.Int64N(20<<10)
		if random.IntN(2) == 0 {
			_ = tcp.SetLinger(0) // RST instead of FIN
		}
	}
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	commands := "a LOGIN " + user + " " + password + "\r\nb SELECT INBOX\r\nc FETCH 1 BODY.PEEK[]\r\nd LOGOUT\r\n"
	if _, err := io.WriteString(conn, commands); err != nil {
		return err
	}
	return w.checkOwners(io.LimitReader(conn, readLimit), user)
}

// checkOwners checks every line up to the end of the stream.
func (w *stormTest) checkOwners(r io.Reader, user string) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		for owner := range markOwners(lines.Text()) {
			w.marksSeen.Add(1)
			if owner != user {
				w.foreignMarks.Add(1)
			}
		}
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "d OK "):
			w.completed.Add(1)
			return nil
		case strings.HasPrefix(line, "a NO "), strings.HasPrefix(line, "a BAD "):
			return errors.New(line)
		}
	}
	w.aborted.Add(1)
	if err := lines.Err(); err != nil && !isConnEnd(err) {
		return err
	}
	return nil
}
