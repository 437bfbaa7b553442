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

// The forms, in order of preference.
const (
	formInitialResponse loginForm = iota // AUTHENTICATE with an initial response (RFC 4959)
	formContinuation                     // AUTHENTICATE, and the response on request
	formLogin                            // LOGIN, with literals
)

// String returns the form's name in logs.
func (f loginForm) String() string {
	return [...]string{"AUTHENTICATE with an initial response", "AUTHENTICATE", "LOGIN"}[f]
}

// maxPresented bounds how often one login sends its credentials: a backend may answer BAD to a
// wrong password, and count each as a failure.
const maxPresented = 2

// listForms returns the forms in which a backend with caps accepts the credentials.
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

// formPreference tracks which of the listed forms a backend has accepted. It is safe for
// concurrent use.
type formPreference struct {
	mu sync.Mutex

	// Guarded by mu.
	preferred loginForm // form to try first
	accepted  bool      // no BAD since
	succeeded bool      // a login in this form has succeeded
}

// orderForms returns the forms to try. If the preferred form is accepted, a BAD is about the
// credentials, so no other is tried.
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

// recordAccepted records that the backend understood f, and whether the login succeeded.
func (p *formPreference) recordAccepted(f loginForm, succeeded bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.succeeded = succeeded || p.succeeded && p.preferred == f
	p.preferred, p.accepted = f, true
}

// recordRejected records that the backend understood no form. The next login tries several
// forms, beginning with next, or with the accepted one. A form that has succeeded stays first:
// a client can send credentials to which every form gets a BAD.
func (p *formPreference) recordRejected(next loginForm) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.accepted && !p.succeeded {
		p.preferred = next
	}
	p.accepted = false
}

// authenticate sends ID and the login, in one write where no answer is needed in between. It
// returns the tagged answer to the login. A backend that answers BAD may not support the form,
// whatever it lists, so the next one is tried.
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
			pref.recordRejected(f) // the backend has not received it
			return answer, nil     // the backend closed the connection, so its BAD stands
		case err != nil && sent && creds.hasLongToken() && isClosed(err):
			return res, fmt.Errorf("%w: %w", errTokenTooLong, err)
		case err != nil && sent:
			return res, fmt.Errorf("%w: %w", errNoLoginAnswer, err)
		case err != nil:
			return res, err
		case cmd.challenged || !mayConcernForm(res):
			switch {
			case i > 0 && res.Name == "OK": // a NO may be about invented credentials
				b.log.Warn("backend lists a form of login that it does not accept; another is used from now on", zap.Stringer("form", f))
				pref.recordAccepted(f, true)
			case i == 0:
				pref.recordAccepted(f, res.Name == "OK")
			case presented > 0 && classifyReply(res).verdict == VerdictNone: // what the earlier BAD was about stays unclear
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

// mayConcernForm reports whether an answer may be about the form of a login and not its
// credentials.
func mayConcernForm(res imap.Response) bool {
	return res.Name == "BAD" && classifyReply(res).verdict == VerdictUnclear
}
