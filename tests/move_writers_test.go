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

// startWriters starts all writers to the user's mailbox. They end when stop is closed.
func (m *movedUser) startWriters(wg *sync.WaitGroup, stop <-chan struct{}) {
	for i, perSession := range []int{-1, -1, 5} { // messages before a client logs out; -1: unlimited
		w := &writer{movedUser: m, name: fmt.Sprint("client", i), e: m.gateways[i%2].endpoint("implicit"), perSession: perSession, selects: i != 1, stop: stop}
		wg.Go(w.run)
	}
	wg.Go(func() { m.idleUntil(stop) })
	wg.Go(func() { m.runMTA(stop) })
}

// waitOrStopped waits for writeInterval and reports whether stop is closed.
func waitOrStopped(stop <-chan struct{}) bool {
	select {
	case <-stop:
		return true
	case <-time.After(writeInterval):
		return false
	}
}

// writer is a client that appends one message after the other and reconnects if needed.
type writer struct {
	*movedUser
	name       string
	e          endpoint
	perSession int
	selects    bool
	stop       <-chan struct{}

	n     int
	retry bool // the last message was refused and is sent again
}

func (w *writer) run() {
	for !waitOrStopped(w.stop) {
		if c, err := loginAt(w.e, w.movedUser.name); err == nil {
			w.storeMessages(c)
			_ = c.Close()
		}
	}
}

// loginAt logs in.
func loginAt(e endpoint, user string) (*RawClient, error) {
	c, err := dialIMAP(e, "")
	if err != nil {
		return nil, err
	}
	if err := checkOK(c.Do("LOGIN " + user + " " + password)); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// literal returns the marker for a message: {+} where the server may send untagged
// responses before the continuation, which a RawClient treats as a refusal.
func (w *writer) literal() string {
	if w.selects {
		return nonSyncLiteral
	}
	return syncLiteral
}

func (w *writer) storeMessages(c *RawClient) {
	if w.selects && checkOK(c.Do("SELECT INBOX")) != nil {
		return
	}
	for i := 0; i != w.perSession && !waitOrStopped(w.stop); i++ {
		if !w.retry {
			w.n++
		}
		token := fmt.Sprintf("%s-%s-%d", w.movedUser.name, w.name, w.n)
		got, err := c.Do("APPEND INBOX "+w.literal(), newMessage(token))
		refused := (*RefusedError)(nil)
		w.retry = errors.As(err, &refused) && !strings.HasPrefix(refused.Response.Text, "* ") ||
			err == nil && !strings.Contains(got[len(got)-1].Text, " OK ")
		switch {
		case w.retry: // as mail clients do
		case err != nil:
			w.recordUnanswered(token)
			return
		default:
			w.recordStored(w.name, token)
		}
	}
	_, _ = c.Do("LOGOUT") // the result does not matter
}

// idleUntil runs a client in IDLE until stop is closed.
func (m *movedUser) idleUntil(stop <-chan struct{}) {
	for !waitOrStopped(stop) {
		c, err := loginAt(m.gateways[1].endpoint("implicit"), m.name)
		if err != nil {
			continue
		}
		done := make(chan struct{})
		go func() { // ends with the connection
			defer close(done)
			if checkOK(c.Do("SELECT INBOX")) != nil {
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
		case <-stop:
		}
		_ = c.Close()
		<-done
	}
}

// runMTA runs the MTA. It delivers one message after the other to the host in its table and
// retries those that are not accepted.
func (m *movedUser) runMTA(stop <-chan struct{}) {
	for n := 0; !waitOrStopped(stop); n++ {
		token := fmt.Sprintf("%s-mta-%d", m.name, n)
		for {
			err := m.deliverLMTP(token)
			if err == nil {
				m.recordStored("mta", token)
				break
			}
			m.recordUnanswered(token) // the MTA retries it anyway
			if waitOrStopped(stop) {
				return
			}
		}
	}
}

// deliverLMTP delivers one message by LMTP (RFC 2033).
func (m *movedUser) deliverLMTP(token string) error {
	conn, err := net.DialTimeout("tcp", m.transportAddress(), Timeout)
	if err != nil {
		return err
	}
	defer conn.Close() // all responses were read
	if err := conn.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	for _, line := range []string{
		"", "LHLO mta.test", "MAIL FROM:<ann@example.org>", "RCPT TO:<" + m.name + ">", "DATA", string(newMessage(token)) + ".", "QUIT",
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
			return nil // the message is stored, whatever follows
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

// transportAddress returns the user's last entry in the MTA's table.
func (m *movedUser) transportAddress() (address string) {
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
