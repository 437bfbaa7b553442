package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// The comparison of a run with the backend.

// directConn is a connection to the backend that bypasses gateway and fault proxy.
type directConn struct {
	conn       *imapConn
	transcript *transcript
	tagCount   int
	untagged   []Response // to the last command
}

// counter numbers the lines of a directConn's transcript, which is not printed.
type counter struct{ n int64 }

func (c *counter) Add(d int64) int64 { c.n += d; return c.n }

func dialDirect(address, user string) (*directConn, error) {
	p := &directConn{transcript: &transcript{lineCounter: &counter{}, limit: 1}}
	var err error
	if p.conn, err = dial(address, p.transcript); err != nil {
		return nil, err
	}
	if _, err = p.conn.readResponse(); err == nil {
		_, err = p.exec("LOGIN " + user + " " + password)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *directConn) close() { p.conn.close() }

// exec sends a command and returns its OK response. It stores the untagged responses.
func (p *directConn) exec(command string) (string, error) {
	p.tagCount++
	tag := fmt.Sprintf("t%d ", p.tagCount)
	if err := p.conn.sendBytes(tag + command + "\r\n"); err != nil {
		return "", err
	}
	for p.untagged = nil; ; {
		r, err := p.conn.readResponse()
		if err != nil {
			return "", err
		}
		if rest, ok := strings.CutPrefix(r.Text, tag); ok {
			if !strings.HasPrefix(rest, "OK ") {
				return "", fmt.Errorf("%s: %s", command, rest)
			}
			return rest, nil
		}
		p.untagged = append(p.untagged, r)
	}
}

// fetchMessages returns all messages of a mailbox.
func (p *directConn) fetchMessages(mailbox string) ([]fetchResponse, error) {
	if _, err := p.exec("EXAMINE " + mailbox); err != nil {
		return nil, err
	}
	if _, err := p.exec("UID FETCH 1:* (UID FLAGS " + subjectItem + ")"); err != nil {
		return nil, err
	}
	var all []fetchResponse
	for _, r := range p.untagged {
		number, rest, _ := strings.Cut(strings.TrimPrefix(r.Text, "* "), " FETCH ")
		n, ok := parseNumber(number)
		if !ok || rest == "" {
			continue
		}
		f, err := parseFetch(n, rest, r.Literals)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

// compareRetries is how often a comparison is made when an aborted command may still be
// executing at the backend.
const compareRetries = 3

// compare makes every client send NOOP twice and compares its view with the backend.
func (w *Simulation) compare() (err error) {
	n := 1
	if w.Faults == AllFaults || w.Concurrent {
		n = compareRetries
	}
	for range n {
		if err = w.compareOnce(); err == nil {
			return nil
		}
	}
	return err
}

func (w *Simulation) compareOnce() error {
	for range 2 {
		for _, a := range w.clients {
			if err := a.syncView(); err != nil {
				return fmt.Errorf("%s (%s): %w", a.name, a.level, err)
			}
		}
	}
	for _, account := range []*Account{w.account, w.clients[len(w.clients)-1].account} {
		if err := w.compareAccount(account); err != nil {
			return err
		}
	}
	return nil
}

func (w *Simulation) compareAccount(account *Account) error {
	p, err := dialDirect(w.BackendAddress, account.user)
	if err != nil {
		return err
	}
	defer p.close()
	stored, err := p.fetchMessages("INBOX")
	if err != nil {
		return err
	}
	for _, a := range w.clients {
		if a.account != account || a.conn == nil || a.view.mailbox == "" {
			continue
		}
		if err := a.compareView(stored); err != nil {
			return fmt.Errorf("%s (%s) after two NOOPs: %w", a.name, a.level, err)
		}
		w.stats.update(func(s *Stats) { s.Checks++ })
	}
	return nil
}

// syncView ends IDLE and sends NOOP.
func (a *Client) syncView() error {
	if err := a.stopIdle(); err != nil || a.conn == nil {
		return err
	}
	return a.exec(newCommand("NOOP", ""))
}

// compareView compares a client's view with the messages in the backend. With concurrent
// clients flags are not compared: when two clients change a message at the same moment,
// Dovecot may report only one change to a third client, even in mode splice.
func (a *Client) compareView(stored []fetchResponse) error {
	if len(stored) != len(a.view.entries) {
		return newViolation("the client knows %d messages, the backend has %d", len(a.view.entries), len(stored))
	}
	for i, e := range a.view.entries {
		f := stored[i]
		if e.uid != 0 && e.uid != f.uid {
			return newViolation("message %d is UID %d, but UID %d for the client", i+1, f.uid, e.uid)
		}
		if e.subject != "" && !strings.Contains(f.header, "Subject: "+e.subject+"\r\n") {
			return newViolation("message %d is %q, but %q for the client", i+1, f.header, e.subject)
		}
		actual := map[string]struct{}{}
		for _, flag := range f.flags {
			if flag != `\Recent` {
				actual[flag] = struct{}{}
			}
		}
		believed := maps.Clone(e.flags)
		for flag := range e.uncertain {
			delete(actual, flag)
			delete(believed, flag)
		}
		if !a.sim.Concurrent && e.flags != nil && !maps.Equal(actual, believed) {
			return newViolation("message %d (UID %d) has the flags %v, but %v for the client", i+1, f.uid,
				slices.Sorted(maps.Keys(actual)), slices.Sorted(maps.Keys(believed)))
		}
	}
	return nil
}

// verifyStored compares the stored messages with the results of APPEND, COPY and MOVE.
func (a *Account) verifyStored(w *Simulation) error {
	p, err := dialDirect(w.BackendAddress, a.user)
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := p.exec("STATUS INBOX (UIDNEXT)"); err != nil {
		return err
	}
	var next int
	if _, err := fmt.Sscanf(p.untagged[0].Text, "* STATUS INBOX (UIDNEXT %d)", &next); err != nil {
		return fmt.Errorf("%q: %w", p.untagged[0].Text, err)
	}
	if err := a.checkArrivals(next - 1); err != nil {
		return err
	}
	for _, c := range w.clients {
		if c.account != a {
			continue
		}
		stored, err := p.fetchMessages(c.privateMailbox)
		if err != nil {
			return err
		}
		if err := c.checkCopies(stored); err != nil {
			return err
		}
	}
	return nil
}

// checkCopies checks that the private mailbox has the copied messages in command order:
// all messages of an answered command, all or none of an unanswered one. An unanswered
// command may take effect later than its place in the order.
func (a *Client) checkCopies(stored []fetchResponse) error {
	var got []string
	for _, f := range stored {
		subject, _ := parseSubject(f.header)
		got = append(got, subject)
	}
	var answered, unanswered [][]string
	for _, b := range a.batches {
		if b.unanswered {
			unanswered = append(unanswered, b.subjects)
		} else {
			answered = append(answered, b.subjects)
		}
	}
	if problem := explainCopies(got, answered, unanswered); problem != "" {
		return newViolation("%s of %s differs from what was copied: %s\nstored: %q\nanswered: %q\nunanswered: %q", a.privateMailbox, a.name, problem, got, answered, unanswered)
	}
	return nil
}

// explainCopies tries to split got into all of answered in order, with any of unanswered
// between them. It returns "" if that is possible, else the problem. Where an answered and
// an unanswered batch begin alike, it tries both.
func explainCopies(got []string, answered, unanswered [][]string) string {
	if len(got) == 0 {
		if len(answered) == 0 {
			return ""
		}
		return fmt.Sprintf("%q is missing", answered[0])
	}
	problem := fmt.Sprintf("%q is not expected there", got[0])
	if len(answered) > 0 && hasPrefix(got, answered[0]) {
		if problem = explainCopies(got[len(answered[0]):], answered[1:], unanswered); problem == "" {
			return ""
		}
	}
	for i, d := range unanswered {
		if hasPrefix(got, d) {
			rest := slices.Delete(slices.Clone(unanswered), i, i+1)
			if explainCopies(got[len(d):], answered, rest) == "" {
				return ""
			}
		}
	}
	return problem
}

func hasPrefix(s, prefix []string) bool {
	return len(s) >= len(prefix) && slices.Equal(s[:len(prefix)], prefix)
}
