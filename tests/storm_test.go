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

	"imapgate/internal/testbed"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

const inhabitants = 50

// Fifty users whose mail names them, on two backends; a thousand sessions, many
// of which break off somewhere. Nobody ever sees a byte of another's mail.
func TestInAStormOfSessionsNobodySeesAnothersMail(t *testing.T) {
	t.Parallel()
	ca := testbed.NewCA(t)
	users, paths := map[string]string{}, map[string]upstream.Config{}
	homes := []*testbed.Dovecot{
		testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
		testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca}),
	}
	paths["secured"], paths["plain"] = to(homes[0], upstream.ImplicitTLS), to(homes[1], upstream.NoTLS)
	for i := range inhabitants {
		user := fmt.Sprintf("user%d", i)
		users[user] = []string{"secured", "plain"}[i%2]
		deliver(t, homes[i%2], user, marked(user))
	}
	g := startGateway(t, options{ca: ca, backends: paths, routing: routing.Config{Static: routing.Static{Users: users}}})

	seed := testbed.Seed(t)
	w := weather{g: g, sessions: int64(soaked(1_000, 20_000))}
	var clients errgroup.Group
	for range 24 {
		clients.Go(func() error { return w.blow(seed) })
	}
	if err := clients.Wait(); err != nil {
		t.Error(err)
	}
	t.Logf("%d sessions: %d whole, %d broken off; %d marks seen, %d of others",
		w.next.Load()-24, w.whole.Load(), w.broken.Load(), w.seen.Load(), w.foreign.Load())
	if w.foreign.Load() > 0 {
		t.Errorf("%d marks of other people were seen", w.foreign.Load())
	}
	if w.whole.Load() < w.sessions/10 || w.broken.Load() < w.sessions/10 {
		t.Error("the storm is none: too few sessions of one kind")
	}
	if violations := strings.Count(g.read("audit"), "identity_violation"); violations > 0 {
		t.Errorf("%d logins came out at another user", violations)
	}
}

// marked is a user's mail: 16 KB in which every line names the user.
func marked(user string) []byte {
	m := mail("of=" + user + ";")
	for len(m) < 16<<10 {
		m = append(m, "all of this line is of="+user+"; and of nobody else\r\n"...)
	}
	return m
}

// owners yields the users that a line of marked mail names.
func owners(line string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for {
			_, rest, _ := strings.Cut(line, "of=")
			owner, after, whole := strings.Cut(rest, ";")
			if !whole || !yield(owner) {
				return
			}
			line = after
		}
	}
}

// weather is a storm and what was seen in it.
type weather struct {
	// Set once.
	g        *running
	sessions int64

	next, whole, broken, seen, foreign atomic.Int64
}

// blow makes sessions, one after the other, until there were enough. What a session
// is depends on the seed and its number alone.
func (w *weather) blow(seed uint64) error {
	for n := w.next.Add(1); n <= w.sessions; n = w.next.Add(1) {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		user := fmt.Sprintf("user%d", random.IntN(inhabitants))
		e := w.g.at(listeners[random.IntN(2)*2]) // implicit or none
		if err := w.session(e, user, random); err != nil {
			return fmt.Errorf("a session of %s: %w", user, err)
		}
	}
	return nil
}

// session reads its user's mail, all of it in one go or command by command, and
// may break off after any byte it reads.
func (w *weather) session(e endpoint, user string, random *rand.Rand) error {
	conn, err := net.DialTimeout("tcp", e.address, Patience)
	if err != nil {
		return err
	}
	tcp := conn.(*net.TCPConn)
	defer tcp.Close() // whatever has become of it
	if e.tls != nil {
		conn = tls.Client(conn, e.tls)
	}
	patience := int64(1 << 30)
	if random.IntN(2) == 0 {
		patience = 1 + random.Int64N(20<<10)
		if random.IntN(2) == 0 {
			_ = tcp.SetLinger(0) // RST instead of FIN
		}
	}
	if err := conn.SetDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	commands := "a LOGIN " + user + " " + password + "\r\nb SELECT INBOX\r\nc FETCH 1 BODY.PEEK[]\r\nd LOGOUT\r\n"
	if _, err := io.WriteString(conn, commands); err != nil {
		return err
	}
	return w.watch(io.LimitReader(conn, patience), user)
}

// watch looks at every line and ends with the stream.
func (w *weather) watch(r io.Reader, user string) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		for owner := range owners(lines.Text()) {
			w.seen.Add(1)
			if owner != user {
				w.foreign.Add(1)
			}
		}
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "d OK "):
			w.whole.Add(1)
			return nil
		case strings.HasPrefix(line, "a NO "), strings.HasPrefix(line, "a BAD "):
			return errors.New(line)
		}
	}
	w.broken.Add(1)
	if err := lines.Err(); err != nil && !isEnd(err) {
		return err
	}
	return nil
}
