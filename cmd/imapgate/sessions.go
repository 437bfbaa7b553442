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

// sessionList is what a gateway answers about a user's live sessions.
type sessionList struct {
	User     string               `json:"user"`
	Sessions []proxy.SessionCount `json:"sessions"`
}

// sessionReport is what is known of a user's live sessions: those of one gateway, and
// nothing when it does not answer.
type sessionReport struct {
	Known     bool                 `json:"known"`
	Error     string               `json:"why,omitempty"`     // nothing is known
	Gateway   string               `json:"gateway,omitempty"` // the admin address that was asked
	Counts    []proxy.SessionCount `json:"at,omitempty"`
	AtRoute   *int                 `json:"here,omitempty"`      // where a login would come to
	Elsewhere *int                 `json:"elsewhere,omitempty"` // anywhere else; both nil while the route is not known

	user    string
	backend string // that a login would get; "" for none
	login   string // … and its name there
}

// fetchSessionReport asks the gateway on this machine. Not to know is an answer.
func fetchSessionReport(ctx context.Context, t *routeCommand, x routing.Explanation) sessionReport {
	all, err := fetchSessions(ctx, t.cfg.Admin, t.user.String())
	if err != nil {
		return sessionReport{Error: err.Error()}
	}
	p := sessionReport{Known: true, Gateway: dialableAddress(t.cfg.Admin.Address), Counts: all, user: x.User, backend: x.Backend, login: x.Login}
	if x.Outcome == routing.OutcomeUnavailable {
		return p
	}
	atRoute, elsewhere := 0, 0
	for _, c := range all {
		if c.Backend == x.Backend && c.Login == x.Login {
			atRoute += c.Count
		} else {
			elsewhere += c.Count
		}
	}
	p.AtRoute, p.Elsewhere = &atRoute, &elsewhere
	return p
}

func fetchSessions(ctx context.Context, admin config.Admin, user string) ([]proxy.SessionCount, error) {
	var list sessionList
	q := adminRequest{http.MethodGet, "/v1/sessions", url.Values{"user": {user}}, nil}
	if err := q.do(ctx, admin, &list); err != nil {
		return nil, err
	}
	if list.User != user { // whatever listens there is not ours
		return nil, fmt.Errorf("%s answers for another user", dialableAddress(admin.Address))
	}
	return list.Sessions, nil
}

// print says it in a line or two.
func (p sessionReport) print(to io.Writer) error {
	_, err := io.WriteString(to, p.format())
	return err
}

func (p sessionReport) format() string {
	switch {
	case !p.Known:
		return fmt.Sprintf("live sessions: not known, because the gateway on this machine was not asked: %s\n", quoteUnsafe(p.Error))
	case len(p.Counts) == 0:
		return fmt.Sprintf("live sessions: none at the gateway on %s\n", quoteUnsafe(p.Gateway))
	}
	var counts []string
	for _, c := range p.Counts {
		counts = append(counts, fmt.Sprintf("%d at %s (%s)", c.Count, p.formatBackend(c.Backend, c.Login), quoteUnsafe(c.Mode)))
	}
	s := fmt.Sprintf("live sessions at the gateway on %s: %s\n", quoteUnsafe(p.Gateway), strings.Join(counts, ", "))
	switch {
	case p.Elsewhere == nil:
		s += "how many of them are elsewhere is not known, because the route is not\n"
	case *p.Elsewhere == 0:
	case p.backend == "":
		s += fmt.Sprintf("elsewhere: %d, because no login gets a backend now; they go on, and write, until they end\n", *p.Elsewhere)
	default:
		s += fmt.Sprintf("elsewhere: %d, not at %s; they go on, and write where they are, until they end\n", *p.Elsewhere, p.formatBackend(p.backend, p.login))
	}
	return s
}

// formatBackend names a backend, and the login name there where it is not the user's.
func (p sessionReport) formatBackend(backend, login string) string {
	if login == p.user || login == "" {
		return quoteUnsafe(backend)
	}
	return quoteUnsafe(backend) + " as " + quoteUnsafe(login)
}
