package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"imapgate/internal/admin"
	"imapgate/internal/admin/api"
	"imapgate/internal/event"
	"imapgate/internal/sanitize"
	"imapgate/proxy"
	"imapgate/routing"
)

// sessionReport has the live sessions of a user at one gateway, if it responds.
type sessionReport struct {
	Known     bool                 `json:"known"`
	Error     string               `json:"why,omitempty"`     // why nothing is known
	Gateway   string               `json:"gateway,omitempty"` // the admin address
	Counts    []proxy.SessionCount `json:"at,omitempty"`
	AtRoute   *int                 `json:"here,omitempty"`      // those at the backend, and with the login name, of the next login
	Elsewhere *int                 `json:"elsewhere,omitempty"` // the others; both nil while the route is unknown

	user    string
	backend string // the backend of the next login; "" for none
	login   string // the login name there
}

// fetchSessionReport queries the gateway on this machine. A failure is part of the
// report.
func fetchSessionReport(ctx context.Context, t *routeCommand, x routing.Explanation) sessionReport {
	all, err := fetchSessions(ctx, t.cfg.Admin, t.user.String())
	if err != nil {
		return sessionReport{Error: err.Error()}
	}
	p := sessionReport{Known: true, Gateway: dialableAddress(t.cfg.Admin.Address), Counts: all, user: x.User, backend: x.Backend, login: x.Login}
	if x.Outcome == event.LookupUnavailable {
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

func fetchSessions(ctx context.Context, admin admin.Settings, user string) ([]proxy.SessionCount, error) {
	list, err := query(ctx, admin, api.ListSessions, user)
	if err != nil {
		return nil, err
	}
	if list.User != user { // another program listens there
		return nil, fmt.Errorf("%s responded for another user", dialableAddress(admin.Address))
	}
	return list.Sessions, nil
}

// print prints the report in one or two lines.
func (p sessionReport) print(to io.Writer) error {
	_, err := io.WriteString(to, p.format())
	return err
}

func (p sessionReport) format() string {
	switch {
	case !p.Known:
		return fmt.Sprintf("live sessions: unknown, because the gateway on this machine could not be queried: %s\n", sanitize.Quote(p.Error))
	case len(p.Counts) == 0:
		return fmt.Sprintf("live sessions: none at the gateway on %s\n", sanitize.Quote(p.Gateway))
	}
	var counts []string
	for _, c := range p.Counts {
		counts = append(counts, fmt.Sprintf("%d at %s (%s)", c.Count, p.formatBackend(c.Backend, c.Login), sanitize.Quote(string(c.Mode))))
	}
	s := fmt.Sprintf("live sessions at the gateway on %s: %s\n", sanitize.Quote(p.Gateway), strings.Join(counts, ", "))
	switch {
	case p.Elsewhere == nil:
		s += "elsewhere: unknown, because the route is unknown\n"
	case *p.Elsewhere == 0:
	case p.backend == "":
		s += fmt.Sprintf("elsewhere: %d, because the user has no route now; they continue, and write there, until they end\n", *p.Elsewhere)
	default:
		s += fmt.Sprintf("elsewhere: %d, not at %s; they continue, and write there, until they end\n", *p.Elsewhere, p.formatBackend(p.backend, p.login))
	}
	return s
}

// formatBackend returns a backend, with the login name there if it is not the
// user's.
func (p sessionReport) formatBackend(backend, login string) string {
	if login == p.user || login == "" {
		return sanitize.Quote(backend)
	}
	return sanitize.Quote(backend) + " as " + sanitize.Quote(login)
}
