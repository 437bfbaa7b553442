package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// What a run is compared with: the backend itself, asked by a connection of its
// own that nothing stands before.

// directConn is such a connection.
type directConn struct {
	conn       *imapConn
	transcript *transcript
	tagCount   int
	untagged   []Response // to the last question
}

// counter numbers the lines of a probe, which nobody sees.
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

// exec wants OK, gives it, and keeps what came before it.
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

// fetchMessages is what a mailbox has.
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

// compareRetries is how often a comparison is made where a command that was cut off
// may still be on its way.
const compareRetries = 3

// compare lets every client say NOOP twice; then it must know what is so.
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

// syncView is one NOOP, with IDLE ended before it.
func (a *Client) syncView() error {
	if err := a.stopIdle(); err != nil || a.conn == nil {
		return err
	}
	return a.exec(newCommand("NOOP", ""))
}

// compareView compares what a client was told with what is so. Where all act at once
// flags are left out: of changes that two make at the same moment a third has been
// told of one alone, in mode splice too, where what Dovecot says is not touched.
func (a *Client) compareView(stored []fetchResponse) error {
	if len(stored) != len(a.view.entries) {
		return newViolation("the client knows of %d messages, and there are %d", len(a.view.entries), len(stored))
	}
	for i, e := range a.view.entries {
		f := stored[i]
		if e.uid != 0 && e.uid != f.uid {
			return newViolation("message %d is UID %d, and the client knows UID %d", i+1, f.uid, e.uid)
		}
		if e.subject != "" && !strings.Contains(f.header, "Subject: "+e.subject+"\r\n") {
			return newViolation("message %d is %q, and the client knows %q", i+1, f.header, e.subject)
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
			return newViolation("message %d (UID %d) has the flags %v, and the client knows %v", i+1, f.uid,
				slices.Sorted(maps.Keys(actual)), slices.Sorted(maps.Keys(believed)))
		}
	}
	return nil
}

// verifyStored compares what was written with what was answered.
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

// checkCopies says whether the private mailbox has what the client meant, in that
// order: all of each answered command, all or nothing of each unanswered one,
// which may also come late.
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
		return newViolation("%s of %s has not what was copied: %s\nthere: %q\nmeant: %q\nunanswered: %q", a.privateMailbox, a.name, problem, got, answered, unanswered)
	}
	return nil
}

// explainCopies lays got out as all of sure in order, with any of doubtful between; ""
// means it can be done. The first message of a copy decides which it is, except
// where two begin alike: then both ways are tried.
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
