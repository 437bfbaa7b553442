package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// What a run is compared with: the backend itself, asked by a connection of its
// own that nothing stands before.

// probe is such a connection.
type probe struct {
	wire *wire
	said *transcript
	tags int
	got  []Response // to the last question
}

// counter numbers the lines of a probe, which nobody sees.
type counter struct{ n int64 }

func (c *counter) Add(d int64) int64 { c.n += d; return c.n }

func openProbe(address, user string) (*probe, error) {
	p := &probe{said: &transcript{clock: &counter{}, keep: 1}}
	var err error
	if p.wire, err = dial(address, p.said); err != nil {
		return nil, err
	}
	if _, err = p.wire.read(); err == nil {
		_, err = p.ask("LOGIN " + user + " " + password)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *probe) close() { p.wire.close() }

// ask wants OK, gives it, and keeps what came before it.
func (p *probe) ask(command string) (string, error) {
	p.tags++
	tag := fmt.Sprintf("t%d ", p.tags)
	if err := p.wire.send(tag + command + "\r\n"); err != nil {
		return "", err
	}
	for p.got = nil; ; {
		r, err := p.wire.read()
		if err != nil {
			return "", err
		}
		if rest, ok := strings.CutPrefix(r.Text, tag); ok {
			if !strings.HasPrefix(rest, "OK ") {
				return "", fmt.Errorf("%s: %s", command, rest)
			}
			return rest, nil
		}
		p.got = append(p.got, r)
	}
}

// messages is what a mailbox has.
func (p *probe) messages(box string) ([]fetched, error) {
	if _, err := p.ask("EXAMINE " + box); err != nil {
		return nil, err
	}
	if _, err := p.ask("UID FETCH 1:* (UID FLAGS " + subjectItem + ")"); err != nil {
		return nil, err
	}
	var all []fetched
	for _, r := range p.got {
		number, rest, _ := strings.Cut(strings.TrimPrefix(r.Text, "* "), " FETCH ")
		n, ok := number32(number)
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

// attempts is how often a comparison is made where a command that was cut off
// may still be on its way.
const attempts = 3

// compare lets every client say NOOP twice; then it must know what is so.
func (w *World) compare() (err error) {
	n := 1
	if w.Faults == AllFaults || w.Racing {
		n = attempts
	}
	for range n {
		if err = w.compareOnce(); err == nil {
			return nil
		}
	}
	return err
}

func (w *World) compareOnce() error {
	for range 2 {
		for _, a := range w.actors {
			if err := a.catchUp(); err != nil {
				return fmt.Errorf("%s (%s): %w", a.name, a.kind, err)
			}
		}
	}
	for _, account := range []*Account{w.account, w.actors[len(w.actors)-1].account} {
		if err := w.compareWith(account); err != nil {
			return err
		}
	}
	return nil
}

func (w *World) compareWith(account *Account) error {
	p, err := openProbe(w.Backend, account.user)
	if err != nil {
		return err
	}
	defer p.close()
	truth, err := p.messages("INBOX")
	if err != nil {
		return err
	}
	for _, a := range w.actors {
		if a.account != account || a.wire == nil || a.mirror.box == "" {
			continue
		}
		if err := a.knows(truth); err != nil {
			return fmt.Errorf("%s (%s) after two NOOPs: %w", a.name, a.kind, err)
		}
		w.stats.add(func(s *Stats) { s.Checks++ })
	}
	return nil
}

// catchUp is one NOOP, with IDLE ended before it.
func (a *Actor) catchUp() error {
	if err := a.stopIdle(); err != nil || a.wire == nil {
		return err
	}
	return a.do(command("NOOP", ""))
}

// knows compares what a client was told with what is so. Where all act at once
// flags are left out: of changes that two make at the same moment a third has been
// told of one alone, in mode splice too, where what Dovecot says is not touched.
func (a *Actor) knows(truth []fetched) error {
	if len(truth) != len(a.mirror.entries) {
		return violation("the client knows of %d messages, and there are %d", len(a.mirror.entries), len(truth))
	}
	for i, e := range a.mirror.entries {
		f := truth[i]
		if e.uid != 0 && e.uid != f.uid {
			return violation("message %d is UID %d, and the client knows UID %d", i+1, f.uid, e.uid)
		}
		if e.subject != "" && !strings.Contains(f.header, "Subject: "+e.subject+"\r\n") {
			return violation("message %d is %q, and the client knows %q", i+1, f.header, e.subject)
		}
		is := map[string]struct{}{}
		for _, flag := range f.flags {
			if flag != `\Recent` {
				is[flag] = struct{}{}
			}
		}
		knows := maps.Clone(e.flags)
		for flag := range e.unsure {
			delete(is, flag)
			delete(knows, flag)
		}
		if !a.world.Racing && e.flags != nil && !maps.Equal(is, knows) {
			return violation("message %d (UID %d) has the flags %v, and the client knows %v", i+1, f.uid,
				slices.Sorted(maps.Keys(is)), slices.Sorted(maps.Keys(knows)))
		}
	}
	return nil
}

// verify compares what was written with what was answered.
func (a *Account) verify(w *World) error {
	p, err := openProbe(w.Backend, a.user)
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := p.ask("STATUS INBOX (UIDNEXT)"); err != nil {
		return err
	}
	var next int
	if _, err := fmt.Sscanf(p.got[0].Text, "* STATUS INBOX (UIDNEXT %d)", &next); err != nil {
		return fmt.Errorf("%q: %w", p.got[0].Text, err)
	}
	if err := a.arrivals(next - 1); err != nil {
		return err
	}
	for _, c := range w.actors {
		if c.account != a {
			continue
		}
		there, err := p.messages(c.private)
		if err != nil {
			return err
		}
		if err := c.copiesAre(there); err != nil {
			return err
		}
	}
	return nil
}

// copiesAre says whether the private mailbox has what the client meant, in that
// order: all of each answered command, all or nothing of each unanswered one,
// which may also come late.
func (a *Actor) copiesAre(there []fetched) error {
	var got []string
	for _, f := range there {
		subject, _ := subjectOf(f.header)
		got = append(got, subject)
	}
	var sure, doubtful [][]string
	for _, b := range a.batches {
		if b.doubtful {
			doubtful = append(doubtful, b.subjects)
		} else {
			sure = append(sure, b.subjects)
		}
	}
	if at := explain(got, sure, doubtful); at != "" {
		return violation("%s of %s has not what was copied: %s\nthere: %q\nmeant: %q\nunanswered: %q", a.private, a.name, at, got, sure, doubtful)
	}
	return nil
}

// explain lays got out as all of sure in order, with any of doubtful between; ""
// means it can be done. The first message of a copy decides which it is, except
// where two begin alike: then both ways are tried.
func explain(got []string, sure, doubtful [][]string) string {
	if len(got) == 0 {
		if len(sure) == 0 {
			return ""
		}
		return fmt.Sprintf("%q is missing", sure[0])
	}
	why := fmt.Sprintf("%q is not expected there", got[0])
	if len(sure) > 0 && startsWith(got, sure[0]) {
		if why = explain(got[len(sure[0]):], sure[1:], doubtful); why == "" {
			return ""
		}
	}
	for i, d := range doubtful {
		if startsWith(got, d) {
			rest := slices.Delete(slices.Clone(doubtful), i, i+1)
			if explain(got[len(d):], sure, rest) == "" {
				return ""
			}
		}
	}
	return why
}

func startsWith(s, prefix []string) bool {
	return len(s) >= len(prefix) && slices.Equal(s[:len(prefix)], prefix)
}
