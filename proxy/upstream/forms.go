package upstream

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/imap"
)

// form is a way to send credentials.
type form uint8

// The forms, the best first.
const (
	formAtOnce form = iota // AUTHENTICATE with an initial response (RFC 4959)
	formAsked              // AUTHENTICATE, and the response when the backend asks for it
	formLogin              // LOGIN, with literals
)

// String is for the log.
func (f form) String() string {
	return [...]string{"AUTHENTICATE with an initial response", "AUTHENTICATE", "LOGIN"}[f]
}

// maxShown bounds how often one login shows its credentials: a backend may answer
// BAD to a wrong password, and counts that each time.
const maxShown = 2

// forms are the ways that a backend with caps takes the credentials.
func (c credentials) forms(caps imap.Caps) (forms []form, err error) {
	bySASL := caps.Has("AUTH=PLAIN")
	byLogin := c.authzid == "" && !caps.Has("LOGINDISABLED")
	switch {
	case !c.token.IsZero():
		if _, err := c.bearer(caps); err != nil {
			return nil, err
		}
		bySASL, byLogin = true, false
	case !bySASL && c.authzid != "":
		return nil, fmt.Errorf("%w as a master user: no AUTH=PLAIN", errMechanism)
	case !bySASL && !byLogin:
		return nil, fmt.Errorf("%w: LOGINDISABLED", errMechanism)
	}
	if bySASL && caps.Has("SASL-IR") && !c.isLong() {
		forms = append(forms, formAtOnce)
	}
	if bySASL {
		forms = append(forms, formAsked)
	}
	if byLogin {
		forms = append(forms, formLogin)
	}
	return forms, nil
}

// habit is what logins have shown of the forms that a backend lists and of those
// that it understands. It guards itself.
type habit struct {
	mu sync.Mutex

	// Guarded by mu.
	first      form // the one that was understood last
	understood bool // and no BAD came since
	proven     bool // and somebody was let in by it
}

// choose leaves of forms those that are worth a try. Where the first was understood,
// BAD is about the credentials: no other form is tried for this login.
func (h *habit) choose(forms []form) []form {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := slices.Index(forms, h.first)
	if i < 0 {
		return forms
	}
	if h.understood {
		return forms[i : i+1]
	}
	return slices.Concat(forms[i:], forms[:i])
}

// note takes in that f was understood; proven, that somebody was let in.
func (h *habit) note(f form, proven bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.proven = proven || h.proven && h.first == f
	h.first, h.understood = f, true
}

// doubt takes in that no form was understood: the next login begins with next, or where
// one was understood before, with that, and tries others. One by which somebody was let
// in stays the first: what a stranger shows may be called BAD in every form.
func (h *habit) doubt(next form) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.understood && !h.proven {
		h.first = next
	}
	h.understood = false
}

// authenticate sends ID and the login, in one write as far as the backend need
// not be heard in between, and returns its tagged answer to the login. A backend
// that answers BAD may not take the form, whatever it lists: the next one is tried.
func (b *Backend) authenticate(d *dialogue, who credentials, c Client) (answer imap.Response, err error) {
	forms, err := who.forms(d.caps)
	if err != nil {
		return imap.Response{}, err
	}
	habit := &b.passwords
	if !who.token.IsZero() {
		habit = &b.tokens
	}
	s := newScript()
	if d.caps.Has("ID") {
		s.id = tagID + d.tag
		s.bytes = b.appendID(s.bytes, s.id, c, b.hops(c)-1)
		d.id = c.OwnID()
	}
	shown := 0
	for i, f := range habit.choose(forms) {
		if i > 0 {
			d.renew(i)
			s = newScript()
		}
		if err := who.appendLogin(s, f, d); err != nil {
			return imap.Response{}, err
		}
		res, sent, err := d.perform(s, b.cfg.AnswerTimeout)
		switch {
		case err != nil && i > 0 && !sent:
			habit.doubt(f)     // which it has not heard
			return answer, nil // the backend had enough of it: its BAD stands
		case err != nil && sent && who.isLong() && isClosed(err):
			return res, fmt.Errorf("%w: %w", errTokenEnd, err)
		case err != nil && sent:
			return res, fmt.Errorf("%w: %w", errUnanswered, err)
		case err != nil:
			return res, err
		case s.judged || !maybeForm(res):
			switch {
			case i > 0 && res.Name == "OK": // a NO may be about what the client has made up
				b.log.Warn("backend lists a form of login that it does not take; another is used from now on", zap.Stringer("form", f))
				habit.note(f, true)
			case i == 0:
				habit.note(f, res.Name == "OK")
			case shown > 0 && meaningOf(res).verdict == VerdictNone: // of the BAD nobody knows what it judged
				return answer, nil
			}
			return res, nil
		}
		if sent {
			shown++
		}
		answer = res
		if shown == maxShown || !time.Now().Before(d.deadline) {
			break
		}
	}
	habit.doubt(forms[0])
	return answer, nil
}

// maybeForm reports whether an answer may be about the form of a login and not about
// its credentials.
func maybeForm(res imap.Response) bool {
	return res.Name == "BAD" && meaningOf(res).verdict == VerdictUnclear
}
