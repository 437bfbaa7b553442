package tests

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// write starts everybody who writes to the user's mailbox, until over is closed.
func (m *migrant) write(wg *sync.WaitGroup, over <-chan struct{}) {
	for i, lives := range []int{-1, -1, 5} { // messages until a client logs out; -1: it never does
		w := &writer{migrant: m, name: fmt.Sprint("client", i), e: m.gateways[i%2].endpoint("implicit"), lives: lives, selects: i != 1, over: over}
		wg.Go(w.run)
	}
	wg.Go(func() { m.idle(over) })
	wg.Go(func() { m.deliver(over) })
}

// isOver waits a little, and says whether it is all over.
func isOver(over <-chan struct{}) bool {
	select {
	case <-over:
		return true
	case <-time.After(pace):
		return false
	}
}

// writer is a client that stores one message after the other, and connects again
// whenever it has to.
type writer struct {
	*migrant
	name    string
	e       endpoint
	lives   int
	selects bool
	over    <-chan struct{}

	n     int
	again bool // the last message was refused: it is tried again
}

func (w *writer) run() {
	for !isOver(w.over) {
		if c, err := enterAt(w.e, w.migrant.name); err == nil {
			w.session(c)
			_ = c.Close()
		}
	}
}

// enterAt logs in.
func enterAt(e endpoint, user string) (*RawClient, error) {
	c, err := reach(e, "")
	if err != nil {
		return nil, err
	}
	if err := okay(c.Do("LOGIN " + user + " " + password)); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// literal is how a message is sent: at once where the server may speak of the
// mailbox in between, which a RawClient takes for the answer.
func (w *writer) literal() string {
	if w.selects {
		return nonSyncLiteral
	}
	return syncLiteral
}

func (w *writer) session(c *RawClient) {
	if w.selects && okay(c.Do("SELECT INBOX")) != nil {
		return
	}
	for i := 0; i != w.lives && !isOver(w.over); i++ {
		if !w.again {
			w.n++
		}
		token := fmt.Sprintf("%s-%s-%d", w.migrant.name, w.name, w.n)
		got, err := c.Do("APPEND INBOX "+w.literal(), mail(token))
		refused := (*Refused)(nil)
		w.again = errors.As(err, &refused) && !strings.HasPrefix(refused.Response.Text, "* ") ||
			err == nil && !strings.Contains(got[len(got)-1].Text, " OK ")
		switch {
		case w.again: // as mail clients do
		case err != nil:
			w.doubtful(token)
			return
		default:
			w.stored(w.name, token)
		}
	}
	_, _ = c.Do("LOGOUT") // it is over
}

// idle is a client that waits for news.
func (m *migrant) idle(over <-chan struct{}) {
	for !isOver(over) {
		c, err := enterAt(m.gateways[1].endpoint("implicit"), m.name)
		if err != nil {
			continue
		}
		done := make(chan struct{})
		go func() { // until the connection ends
			defer close(done)
			if okay(c.Do("SELECT INBOX")) != nil {
				return
			}
			if _, err := c.Send("IDLE"); err == nil {
				for _, err := c.Read(); err == nil || errors.Is(err, os.ErrDeadlineExceeded); {
					_, err = c.Read()
				}
			}
		}()
		select {
		case <-done:
		case <-over:
		}
		_ = c.Close()
		<-done
	}
}

// deliver is the MTA: it hands one message after the other to where its table says,
// and keeps those that are not taken.
func (m *migrant) deliver(over <-chan struct{}) {
	for n := 0; !isOver(over); n++ {
		token := fmt.Sprintf("%s-mta-%d", m.name, n)
		for {
			err := m.hand(token)
			if err == nil {
				m.stored("mta", token)
				break
			}
			m.doubtful(token) // as far as the MTA knows; it tries again all the same
			if isOver(over) {
				return
			}
		}
	}
}

// hand delivers one message by LMTP (RFC 2033).
func (m *migrant) hand(token string) error {
	conn, err := net.DialTimeout("tcp", m.leadsTo(), Patience)
	if err != nil {
		return err
	}
	defer conn.Close() // all answers were read
	if err := conn.SetDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	for _, line := range []string{
		"", "LHLO mta.test", "MAIL FROM:<ann@example.org>", "RCPT TO:<" + m.name + ">", "DATA", string(mail(token)) + ".", "QUIT",
	} {
		if line != "" {
			if _, err := io.WriteString(conn, line+"\r\n"); err != nil {
				return err
			}
		}
		answer, err := r.ReadString('\n')
		for err == nil && len(answer) > 3 && answer[3] == '-' {
			answer, err = r.ReadString('\n')
		}
		if line == "QUIT" {
			return nil // the message is stored, whatever comes
		}
		if err == nil && answer[0] != '2' && answer[0] != '3' {
			err = errors.New(strings.TrimSpace(answer))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// leadsTo is the last that the MTA's table says of the user.
func (m *migrant) leadsTo() (address string) {
	table, err := os.ReadFile(m.transport)
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(table)) {
		if to, ok := strings.CutPrefix(strings.TrimSpace(line), m.name+" lmtp:inet:"); ok {
			address = to
		}
	}
	return address
}
