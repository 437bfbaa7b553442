package tests

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"imapgate/internal/event"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
)

// isolationTest is a gateway for users with marked mail, and the results of their sessions.
type isolationTest struct {
	// Set once.
	g        *gateway
	sessions int64

	nextSession, dovecotSessions, completed, aborted, marksSeen, foreignMarks atomic.Int64
	firstForeign                                                              atomic.Pointer[string] // the first line of another user
}

// workload is one session of a user.
type workload struct {
	// Set once.
	*isolationTest
	user         string
	tagPrefix    string // of all its tags
	script       string // all commands
	commandCount int    // in script
}

// workloadTag matches the tags of all workloads. No two workloads share a tag.
var workloadTag = regexp.MustCompile(`^(v\d+\.)\d+ `)

// runSessions runs sessions one after the other until enough were run. A session depends
// only on the seed and its number.
func (p *isolationTest) runSessions(seed uint64) error {
	for n := p.nextSession.Add(1); n <= p.sessions; n = p.nextSession.Add(1) {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		i := dovecotUserCount + random.IntN(markedUserCount-dovecotUserCount)
		if random.IntN(8) == 0 { // Dovecot is slower than the stub
			i = random.IntN(dovecotUserCount)
			p.dovecotSessions.Add(1)
		}
		c := &workload{isolationTest: p, user: markedUser(i), tagPrefix: fmt.Sprintf("v%d.", n)}
		c.generateScript(random)
		if err := c.run(random); err != nil {
			return fmt.Errorf("a session of %s, %q: %w", c.user, c.script, err)
		}
	}
	return nil
}

// generateScript generates the commands of a workload.
func (c *workload) generateScript(random *rand.Rand) {
	mark := userMark(c.user)
	message := "all of this line is " + mark + "\r\n"
	commands := []string{
		"LIST \"\" *", "FETCH 1 (FLAGS BODY.PEEK[])", "FETCH 1 (FLAGS)", "STORE 1 +FLAGS (" + mark + ")", "NOOP",
		"STATUS " + mark + " (MESSAGES)", "SEARCH TEXT " + mark, "EXAMINE " + mark, "SELECT INBOX", "IDLE\r\nDONE",
		fmt.Sprintf("APPEND %s {%d+}\r\n%s", mark, len(message), message),
	}
	lines := []string{"LOGIN " + c.user + " " + password, "SELECT INBOX", "FETCH 1 (BODY.PEEK[])"}
	for range random.IntN(6) {
		lines = append(lines, commands[random.IntN(len(commands))])
	}
	if random.IntN(50) == 0 {
		lines = append(lines, "XMARK "+mark) // an unknown command
	}
	var script strings.Builder
	for i, s := range append(lines, "LOGOUT") {
		fmt.Fprintf(&script, "%s%d %s\r\n", c.tagPrefix, i+1, s)
	}
	c.script, c.commandCount = script.String(), len(lines)+1
}

// run runs the session, completely or up to a random byte sent or received.
func (c *workload) run(random *rand.Rand) error {
	e := c.g.endpoint(event.NoTLS)
	if random.IntN(8) == 0 {
		e = c.g.endpoint(event.ImplicitTLS)
	}
	// From many addresses, because each has its own ports.
	from := &net.TCPAddr{IP: net.IPv4(127, 7, byte(random.IntN(64)), byte(1+random.IntN(250)))}
	conn, err := (&net.Dialer{Timeout: Timeout, LocalAddr: from}).Dial("tcp", e.address)
	if err != nil {
		return err
	}
	tcp := conn.(*net.TCPConn)
	defer tcp.Close() // in any state
	if e.tls != nil {
		conn = tls.Client(conn, e.tls)
	}
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	if random.IntN(2) == 0 {
		return c.runScript(conn, conn)
	}
	if random.IntN(2) == 0 {
		_ = tcp.SetLinger(0) // RST instead of FIN
	}
	c.aborted.Add(1)
	return c.runAborted(conn, random)
}

// runAborted runs a session that ends without waiting for the responses.
func (c *workload) runAborted(conn net.Conn, random *rand.Rand) error {
	switch random.IntN(3) {
	case 0: // after LOGOUT, before any response
		_, err := io.WriteString(conn, c.script)
		return err
	case 1: // anywhere in the script
		b := bufio.NewReader(conn)
		if _, err := b.ReadString('\n'); err != nil {
			return err
		}
		sent := c.script[:random.IntN(len(c.script))]
		_, err := io.WriteString(conn, sent)
		if err == nil && strings.Contains(sent, "\n") { // LOGIN has a response
			_, err = b.ReadByte()
		}
		return err
	}
	err := c.runScript(conn, io.LimitReader(conn, 1+random.Int64N(12<<10)))
	if errors.Is(err, errTruncated) {
		return nil
	}
	return err
}

// errTruncated reports responses that end before those of the last command.
var errTruncated = errors.New("the responses end early")

// runScript sends the script at once and checks all responses.
func (c *workload) runScript(w io.Writer, r io.Reader) error {
	if _, err := io.WriteString(w, c.script); err != nil {
		return err
	}
	answers, last := 0, fmt.Sprintf("%s%d OK ", c.tagPrefix, c.commandCount)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		line := lines.Text()
		for owner := range markOwners(line) {
			c.marksSeen.Add(1)
			c.checkOwner(line, owner, c.user)
		}
		if m := workloadTag.FindStringSubmatch(line); m != nil {
			answers++
			c.checkOwner(line, m[1], c.tagPrefix)
		}
		if strings.HasPrefix(line, last) {
			c.completed.Add(1)
			if answers != c.commandCount {
				return fmt.Errorf("%d responses to %d commands", answers, c.commandCount)
			}
			return nil
		}
	}
	if err := lines.Err(); err != nil && !isConnEnd(err) {
		return err
	}
	return errTruncated
}

func (c *workload) checkOwner(line, got, want string) {
	if got != want {
		c.foreignMarks.Add(1)
		report := fmt.Sprintf("%s received %q", c.user, line)
		c.firstForeign.CompareAndSwap(nil, &report)
	}
}
