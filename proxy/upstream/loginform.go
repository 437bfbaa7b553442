package upstream

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/imap"
)

// loginForm is a way to send credentials.
type loginForm uint8

// The forms, the best first.
const (
	formInitialResponse loginForm = iota // AUTHENTICATE with an initial response (RFC 4959)
	formContinuation                     // AUTHENTICATE, and the response when the backend asks for it
	formLogin                            // LOGIN, with literals
)

// String is for the log.
func (f loginForm) String() string {
	return [...]string{"AUTHENTICATE with an initial response", "AUTHENTICATE", "LOGIN"}[f]
}

// maxPresented bounds how often one login shows its credentials: a backend may answer
// BAD to a wrong password, and counts that each time.
const maxPresented = 2

// listForms are the ways that a backend with caps takes the credentials.
func (c credentials) listForms(caps imap.Caps) (forms []loginForm, err error) {
	bySASL := caps.Has("AUTH=PLAIN")
	byLogin := c.authzid == "" && !caps.Has("LOGINDISABLED")
	switch {
	case !c.token.IsZero():
		if _, err := c.bearerMessage(caps); err != nil {
			return nil, err
		}
		bySASL, byLogin = true, false
	case !bySASL && c.authzid != "":
		return nil, fmt.Errorf("%w as a master user: no AUTH=PLAIN", errMechanism)
	case !bySASL && !byLogin:
		return nil, fmt.Errorf("%w: LOGINDISABLED", errMechanism)
	}
	if bySASL && caps.Has("SASL-IR") && !c.hasLongToken() {
		forms = append(forms, formInitialResponse)
	}
	if bySASL {
		forms = append(forms, formContinuation)
	}
	if byLogin {
		forms = append(forms, formLogin)
	}
	return forms, nil
}

// formPreference is what logins have shown of the forms that a backend lists and of those
// that it understands. It guards itself.
type formPreference struct {
	mu sync.Mutex

	// Guarded by mu.
	preferred loginForm // the one that was understood last
	accepted  bool      // and no BAD came since
	succeeded bool      // and somebody was let in by it
}

// orderForms leaves of forms those that are worth a try. Where the first was understood,
// BAD is about the credentials: no other form is tried for this login.
func (p *formPreference) orderForms(forms []loginForm) []loginForm {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(forms, p.preferred)
	if i < 0 {
		return forms
	}
	if p.accepted {
		return forms[i : i+1]
	}
	return slices.Concat(forms[i:], forms[:i])
}

// recordAccepted takes in that f was understood; proven, that somebody was let in.
func (p *formPreference) recordAccepted(f loginForm, succeeded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.succeeded = succeeded || p.succeeded && p.preferred == f
	p.preferred, p.accepted = f, true
}

// recordRejected takes in that no form was understood: the next login begins with next, or where
// one was understood before, with that, and tries others. One by which somebody was let
// in stays the first: what a stranger shows may be called BAD in every form.
func (p *formPreference) recordRejected(next loginForm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.accepted && !p.succeeded {
		p.preferred = next
	}
	p.accepted = false
}

// authenticate sends ID and the login, in one write as far as the backend need
// not be heard in between, and returns its tagged answer to the login. A backend
// that answers BAD may not take the form, whatever it lists: the next one is tried.
func (b *Backend) authenticate(lc *loginConn, creds credentials, c Client) (answer imap.Response, err error) {
	forms, err := creds.listForms(lc.caps)
	if err != nil {
		return imap.Response{}, err
	}
	pref := &b.passwordForms
	if !creds.token.IsZero() {
		pref = &b.tokenForms
	}
	cmd := newLoginCommand()
	if lc.caps.Has("ID") {
		cmd.idTag = tagID + lc.tagSuffix
		cmd.bytes = b.appendID(cmd.bytes, cmd.idTag, c, b.hops(c)-1)
		lc.id = c.ForwardedID()
	}
	presented := 0
	for i, f := range pref.orderForms(forms) {
		if i > 0 {
			lc.renewLoginTag(i)
			cmd = newLoginCommand()
		}
		if err := creds.appendLogin(cmd, f, lc); err != nil {
			return imap.Response{}, err
		}
		res, sent, err := lc.sendLogin(cmd, b.cfg.AnswerTimeout)
		switch {
		case err != nil && i > 0 && !sent:
			pref.recordRejected(f) // which it has not heard
			return answer, nil     // the backend had enough of it: its BAD stands
		case err != nil && sent && creds.hasLongToken() && isClosed(err):
			return res, fmt.Errorf("%w: %w", errTokenTooLong, err)
		case err != nil && sent:
			return res, fmt.Errorf("%w: %w", errNoLoginAnswer, err)
		case err != nil:
			return res, err
		case cmd.challenged || !mayConcernForm(res):
			switch {
			case i > 0 && res.Name == "OK": // a NO may be about what the client has made up
				b.log.Warn("backend lists a form of login that it does not take; another is used from now on", zap.Stringer("form", f))
				pref.recordAccepted(f, true)
			case i == 0:
				pref.recordAccepted(f, res.Name == "OK")
			case presented > 0 && classifyReply(res).verdict == VerdictNone: // of the BAD nobody knows what it judged
				return answer, nil
			}
			return res, nil
		}
		if sent {
			presented++
		}
		answer = res
		if presented == maxPresented || !time.Now().Before(lc.deadline) {
			break
		}
	}
	pref.recordRejected(forms[0])
	return answer, nil
}

// mayConcernForm reports whether an answer may be about the form of a login and not about
// its credentials.
func mayConcernForm(res imap.Response) bool {
	return res.Name == "BAD" && classifyReply(res).verdict == VerdictUnclear
}
