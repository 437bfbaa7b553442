package tests

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"imapgate/proxy"
)

// parlour is where tattooed users have sessions, and what was seen in them.
type parlour struct {
	// Set once.
	g        *running
	sessions int64

	next, dovecots, whole, broken, seen, foreign atomic.Int64
	first                                        atomic.Pointer[string] // foreign line
}

// customer is one session of a user.
type customer struct {
	// Set once.
	*parlour
	user   string
	tag    string // begins all of its tags
	script string // all that it says
	tags   int    // in it
}

// numbered is a tag of any customer: no two have the same.
var numbered = regexp.MustCompile(`^(v\d+\.)\d+ `)

// work makes sessions, one after the other, until there were enough. What a session
// is depends on the seed and its number alone.
func (p *parlour) work(seed uint64) error {
	for n := p.next.Add(1); n <= p.sessions; n = p.next.Add(1) {
		random := rand.New(rand.NewPCG(seed, uint64(n)))
		i := onDovecot + random.IntN(tattooed-onDovecot)
		if random.IntN(8) == 0 { // the real one takes its time
			i = random.IntN(onDovecot)
			p.dovecots.Add(1)
		}
		c := &customer{parlour: p, user: tattooedUser(i), tag: fmt.Sprintf("v%d.", n)}
		c.write(random)
		if err := c.run(random); err != nil {
			return fmt.Errorf("a session of %s, %q: %w", c.user, c.script, err)
		}
	}
	return nil
}

// write makes up what a customer says.
func (c *customer) write(random *rand.Rand) {
	mine := tattooOf(c.user)
	letter := "all of this line is " + mine + "\r\n"
	sentences := []string{
		"LIST \"\" *", "FETCH 1 (FLAGS BODY.PEEK[])", "FETCH 1 (FLAGS)", "STORE 1 +FLAGS (" + mine + ")", "NOOP",
		"STATUS " + mine + " (MESSAGES)", "SEARCH TEXT " + mine, "EXAMINE " + mine, "SELECT INBOX", "IDLE\r\nDONE",
		fmt.Sprintf("APPEND %s {%d+}\r\n%s", mine, len(letter), letter),
	}
	said := []string{"LOGIN " + c.user + " " + password, "SELECT INBOX", "FETCH 1 (BODY.PEEK[])"}
	for range random.IntN(6) {
		said = append(said, sentences[random.IntN(len(sentences))])
	}
	if random.IntN(50) == 0 {
		said = append(said, "XMARK "+mine) // which no table has
	}
	var script strings.Builder
	for i, s := range append(said, "LOGOUT") {
		fmt.Fprintf(&script, "%s%d %s\r\n", c.tag, i+1, s)
	}
	c.script, c.tags = script.String(), len(said)+1
}

// run is the session: all of it, or up to some byte that it sends or gets.
func (c *customer) run(random *rand.Rand) error {
	e := c.g.at(proxy.NoTLS)
	if random.IntN(8) == 0 {
		e = c.g.at(proxy.ImplicitTLS)
	}
	// From many addresses: each has its own ports.
	from := &net.TCPAddr{IP: net.IPv4(127, 7, byte(random.IntN(64)), byte(1+random.IntN(250)))}
	conn, err := (&net.Dialer{Timeout: Patience, LocalAddr: from}).Dial("tcp", e.address)
	if err != nil {
		return err
	}
	tcp := conn.(*net.TCPConn)
	defer tcp.Close() // whatever has become of it
	if e.tls != nil {
		conn = tls.Client(conn, e.tls)
	}
	if err := conn.SetDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	if random.IntN(2) == 0 {
		return c.converse(conn, conn)
	}
	if random.IntN(2) == 0 {
		_ = tcp.SetLinger(0) // RST instead of FIN
	}
	c.broken.Add(1)
	return c.breakOff(conn, random)
}

// breakOff is a session that ends without a goodbye.
func (c *customer) breakOff(conn net.Conn, random *rand.Rand) error {
	switch random.IntN(3) {
	case 0: // after LOGOUT, before anything is heard
		_, err := io.WriteString(conn, c.script)
		return err
	case 1: // anywhere in what it says
		b := bufio.NewReader(conn)
		if _, err := b.ReadString('\n'); err != nil {
			return err
		}
		said := c.script[:random.IntN(len(c.script))]
		_, err := io.WriteString(conn, said)
		if err == nil && strings.Contains(said, "\n") { // at least LOGIN is answered
			_, err = b.ReadByte()
		}
		return err
	}
	err := c.converse(conn, io.LimitReader(conn, 1+random.Int64N(12<<10)))
	if errors.Is(err, errShort) {
		return nil
	}
	return err
}

// errShort is a session whose end was not seen.
var errShort = errors.New("the answers end early")

// converse says all at once and looks at all that comes.
func (c *customer) converse(w io.Writer, r io.Reader) error {
	if _, err := io.WriteString(w, c.script); err != nil {
		return err
	}
	answers, last := 0, fmt.Sprintf("%s%d OK ", c.tag, c.tags)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		line := lines.Text()
		for owner := range owners(line) {
			c.seen.Add(1)
			c.check(line, owner, c.user)
		}
		if m := numbered.FindStringSubmatch(line); m != nil {
			answers++
			c.check(line, m[1], c.tag)
		}
		if strings.HasPrefix(line, last) {
			c.whole.Add(1)
			if answers != c.tags {
				return fmt.Errorf("%d answers to %d commands", answers, c.tags)
			}
			return nil
		}
	}
	if err := lines.Err(); err != nil && !isEnd(err) {
		return err
	}
	return errShort
}

func (c *customer) check(line, got, want string) {
	if got != want {
		c.foreign.Add(1)
		told := fmt.Sprintf("%s heard %q", c.user, line)
		c.first.CompareAndSwap(nil, &told)
	}
}
