package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"imapgate/internal/config"
	"imapgate/proxy"
	"imapgate/routing"
)

// userSessions is what a gateway answers about a user's live sessions.
type userSessions struct {
	User     string               `json:"user"`
	Sessions []proxy.SessionCount `json:"sessions"`
}

// presence is what is known of a user's live sessions: those of one gateway, and
// nothing when it does not answer.
type presence struct {
	Known   bool                 `json:"known"`
	Why     string               `json:"why,omitempty"`     // nothing is known
	Gateway string               `json:"gateway,omitempty"` // the admin address that was asked
	At      []proxy.SessionCount `json:"at,omitempty"`
	Here    *int                 `json:"here,omitempty"`      // where a login would come to
	Away    *int                 `json:"elsewhere,omitempty"` // anywhere else; both nil while the route is not known

	user    string
	backend string // that a login would get; "" for none
	login   string // … and its name there
}

// askPresence asks the gateway on this machine. Not to know is an answer.
func askPresence(ctx context.Context, t *routes, x routing.Explanation) presence {
	all, err := askSessions(ctx, t.cfg.Admin, t.user.String())
	if err != nil {
		return presence{Why: err.Error()}
	}
	p := presence{Known: true, Gateway: reachable(t.cfg.Admin.Address), At: all, user: x.User, backend: x.Backend, login: x.Login}
	if x.Outcome == routing.OutcomeUnavailable {
		return p
	}
	here, away := 0, 0
	for _, c := range all {
		if c.Backend == x.Backend && c.Login == x.Login {
			here += c.Count
		} else {
			away += c.Count
		}
	}
	p.Here, p.Away = &here, &away
	return p
}

func askSessions(ctx context.Context, admin config.Admin, user string) ([]proxy.SessionCount, error) {
	var got userSessions
	q := question{http.MethodGet, "/v1/sessions", url.Values{"user": {user}}, nil}
	if err := q.ask(ctx, admin, &got); err != nil {
		return nil, err
	}
	if got.User != user { // whatever listens there is not ours
		return nil, fmt.Errorf("%s answers for another user", reachable(admin.Address))
	}
	return got.Sessions, nil
}

// print says it in a line or two.
func (p presence) print(to io.Writer) error {
	_, err := io.WriteString(to, p.text())
	return err
}

func (p presence) text() string {
	switch {
	case !p.Known:
		return fmt.Sprintf("live sessions: not known, because the gateway on this machine was not asked: %s\n", plain(p.Why))
	case len(p.At) == 0:
		return fmt.Sprintf("live sessions: none at the gateway on %s\n", plain(p.Gateway))
	}
	var each []string
	for _, c := range p.At {
		each = append(each, fmt.Sprintf("%d at %s (%s)", c.Count, p.at(c.Backend, c.Login), plain(c.Mode)))
	}
	s := fmt.Sprintf("live sessions at the gateway on %s: %s\n", plain(p.Gateway), strings.Join(each, ", "))
	switch {
	case p.Away == nil:
		s += "how many of them are elsewhere is not known, because the route is not\n"
	case *p.Away == 0:
	case p.backend == "":
		s += fmt.Sprintf("elsewhere: %d, because no login gets a backend now; they go on, and write, until they end\n", *p.Away)
	default:
		s += fmt.Sprintf("elsewhere: %d, not at %s; they go on, and write where they are, until they end\n", *p.Away, p.at(p.backend, p.login))
	}
	return s
}

// at names a backend, and the login name there where it is not the user's.
func (p presence) at(backend, login string) string {
	if login == p.user || login == "" {
		return plain(backend)
	}
	return plain(backend) + " as " + plain(login)
}
