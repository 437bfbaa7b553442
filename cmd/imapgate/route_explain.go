package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/duration"
	"imapgate/internal/event"
	"imapgate/internal/sanitize"
	"imapgate/proxy"
	"imapgate/routing"
)

func newRouteExplain() *cobra.Command {
	return &cobra.Command{
		Use: "explain USER", Short: "Show a user's route and the reason", Args: requireOne("user name"),
		Long: `Show the backend that a login of USER would get now, the record that decides, and the age
of the answer.

The command asks the running gateway first, through its admin address, because its cache may
hold an older answer. If that fails, the command reads the records itself, and the output
reports it.

It also shows how many live sessions of USER this gateway has, and how many of them are
elsewhere: on another backend, or there with another login name. Those stay there, and write
there, until they end.`,
		Example: "  imapgate route explain alice@example.org",
		RunE: withTarget(func(ctx context.Context, t *routeCommand) error {
			source, intro := "gateway", fmt.Sprintf("Answer of the running gateway at %s.\n\n", t.cfg.Admin.Address)
			x, err := fetchExplanation(ctx, t.cfg.Admin, t.user.String())
			if err != nil {
				source = "records"
				x = t.router.Explain(ctx, t.user)
				intro = fmt.Sprintf("The running gateway could not be queried: %v.\nThis is the content of the records; the gateway's cache may hold an older answer.\n\n", err)
			}
			p := fetchSessionReport(ctx, t, x)
			return printResult(t.cmd, struct {
				Asked string `json:"asked"`
				routing.Explanation
				Sessions sessionReport `json:"sessions"`
			}{source, x, p}, intro+formatExplanation(x, string(cmp.Or(t.cfg.Backends[x.Backend].Mode, "unknown")))+p.format())
		}),
	}
}

// fetchExplanation requests the explanation of a running gateway on this machine.
func fetchExplanation(ctx context.Context, admin admin.Settings, user string) (routing.Explanation, error) {
	x, err := query(ctx, admin, legacy.ExplainRoute, user)
	if err != nil {
		return x, err
	}
	if x.User != user { // another program listens there
		return x, fmt.Errorf("%s responded for another user", dialableAddress(admin.Address))
	}
	return x, nil
}

// formatExplanation returns the decision, then the records it is based on. defaultMode
// is that of the backend in the configuration.
func formatExplanation(x routing.Explanation, defaultMode string) string {
	var rows []string
	row := func(name, value string) {
		if value != "" {
			rows = append(rows, name+"\t"+value)
		}
	}
	row("user", sanitize.Quote(x.User))
	if x.Error != "" {
		row("no route", sanitize.Quote(x.Error))
	} else {
		row("backend", sanitize.Quote(x.Backend))
		row("login name", sanitize.Quote(x.Login))
		row("mode", cmp.Or(sanitize.Quote(string(x.Mode)), defaultMode+" (default of backend "+sanitize.Quote(x.Backend)+")"))
		row("decided by", sanitize.Quote(x.Key))
		row("source", fmt.Sprintf("%s, %s old", sanitize.Quote(string(x.Origin)), duration.Format(x.Age.Round(time.Millisecond))))
	}
	row("changed to", formatPendingChange(x.Next))
	row("changes", formatChangeDelay(x))
	row("records", formatStoreState(x.Store))
	rows = append(rows, "")
	for _, s := range x.Steps {
		mark := " "
		if s.Used {
			mark = "*"
		}
		rows = append(rows, fmt.Sprintf("%s %s\t%s", mark, sanitize.Quote(s.Key), sanitize.Quote(s.Content)))
	}
	return formatTable(rows)
}

// formatStoreState describes a loss of records in Redis; "" without one.
func formatStoreState(s routing.StoreStatus) string {
	if s.State != routing.StoreEmptied && s.State != routing.StoreSuspect {
		return ""
	}
	atNode := ""
	if s.Node != "" {
		atNode = " at " + sanitize.Quote(s.Node)
	}
	return fmt.Sprintf("%d of %d known records%s %s missing since %s; no user is treated as unknown (imapgate route accept-empty ends this)",
		s.Missing, s.Missing+s.Present, atNode, isOrAre(s.Missing), s.Since.Local().Format(time.DateTime))
}

// formatPendingChange describes a change that the gateway has not noticed yet.
func formatPendingChange(next *routing.Decision) string {
	switch {
	case next == nil:
		return ""
	case next.Error != "":
		return sanitize.Quote(next.Error) + "; the gateway has not noticed yet"
	}
	return fmt.Sprintf("%s, decided by %s; the gateway has not noticed yet", sanitize.Quote(next.Backend), sanitize.Quote(next.Key))
}

// formatChangeDelay describes how soon the gateway would notice a change of a
// record.
func formatChangeDelay(x routing.Explanation) string {
	switch {
	case x.BreakerOpen && x.Invalidation.Error != "":
		return "Redis did not answer and is not queried for a moment: " + sanitize.Quote(x.Invalidation.Error)
	case x.BreakerOpen:
		return "Redis did not answer and is not queried for a moment"
	case x.Invalidation.State == routing.InvalidationOff:
		return ""
	case x.Invalidation.State == routing.InvalidationUp:
		return "noticed at once"
	}
	s := "noticed after the cache's ttl; the invalidation connection is " + sanitize.Quote(x.Invalidation.State)
	if x.Invalidation.Error != "" {
		s += ": " + sanitize.Quote(x.Invalidation.Error)
	}
	return s
}

// sessionReport has the live sessions of a user at one gateway, if it responds.
type sessionReport struct {
	Known     bool                 `json:"known"`
	Error     string               `json:"why,omitempty"`     // why nothing is known
	Gateway   string               `json:"gateway,omitempty"` // the admin address
	Counts    []proxy.SessionCount `json:"at,omitempty"`
	AtRoute   *int                 `json:"here,omitempty"`      // those at the backend, and with the login name, of the next login
	Elsewhere *int                 `json:"elsewhere,omitempty"` // the others; both nil while the route is unknown

	route routing.Explanation // of the next login; without a backend there is none
}

// fetchSessionReport queries the gateway on this machine. A failure is part of the
// report.
func fetchSessionReport(ctx context.Context, t *routeCommand, x routing.Explanation) sessionReport {
	list, err := query(ctx, t.cfg.Admin, legacy.ListSessions, t.user.String())
	if err == nil && list.User != t.user.String() { // another program listens there
		err = fmt.Errorf("%s responded for another user", dialableAddress(t.cfg.Admin.Address))
	}
	if err != nil {
		return sessionReport{Error: err.Error()}
	}
	p := sessionReport{Known: true, Gateway: dialableAddress(t.cfg.Admin.Address), Counts: list.Sessions, route: x}
	if x.Outcome == event.LookupUnavailable {
		return p
	}
	atRoute, elsewhere := 0, 0
	for _, c := range list.Sessions {
		if c.Backend == x.Backend && c.Login == x.Login {
			atRoute += c.Count
		} else {
			elsewhere += c.Count
		}
	}
	p.AtRoute, p.Elsewhere = &atRoute, &elsewhere
	return p
}

// format returns the report in one or two lines.
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
	case p.route.Backend == "":
		s += fmt.Sprintf("elsewhere: %d, because the user has no route now; they continue, and write there, until they end\n", *p.Elsewhere)
	default:
		s += fmt.Sprintf("elsewhere: %d, not at %s; they continue, and write there, until they end\n", *p.Elsewhere, p.formatBackend(p.route.Backend, p.route.Login))
	}
	return s
}

// formatBackend returns a backend, with the login name there if it is not the
// user's.
func (p sessionReport) formatBackend(backend, login string) string {
	if login == p.route.User || login == "" {
		return sanitize.Quote(backend)
	}
	return sanitize.Quote(backend) + " as " + sanitize.Quote(login)
}
