package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin"
	"imapgate/internal/admin/api"
	"imapgate/internal/duration"
	"imapgate/internal/sanitize"
	"imapgate/routing"
)

func newRouteExplain(o *routeOptions) *cobra.Command {
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
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.runWithTarget(cmd, args, func(ctx context.Context, t *routeCommand) error {
				x, err := fetchExplanation(ctx, t.cfg.Admin, t.user.String())
				source := "gateway"
				if err != nil {
					source = "records"
					x = t.router.Explain(ctx, t.user)
				}
				p := fetchSessionReport(ctx, t, x)
				if o.asJSON {
					return json.NewEncoder(t.out).Encode(struct {
						Asked string `json:"asked"`
						routing.Explanation
						Sessions sessionReport `json:"sessions"`
					}{source, x, p})
				}
				if err != nil {
					fmt.Fprintf(t.out, "The running gateway could not be queried: %v.\nThis is the content of the records; the gateway's cache may hold an older answer.\n\n", err)
				} else {
					fmt.Fprintf(t.out, "Answer of the running gateway at %s.\n\n", t.cfg.Admin.Address)
				}
				return errors.Join(printExplanation(t.out, x, string(cmp.Or(t.cfg.Backends[x.Backend].Mode, "unknown"))), p.print(t.out))
			})
		},
	}
}

// fetchExplanation requests the explanation of a running gateway on this machine.
func fetchExplanation(ctx context.Context, admin admin.Settings, user string) (routing.Explanation, error) {
	x, err := query(ctx, admin, api.ExplainRoute, user)
	if err != nil {
		return x, err
	}
	if x.User != user { // another program listens there
		return x, fmt.Errorf("%s responded for another user", dialableAddress(admin.Address))
	}
	return x, nil
}

// printExplanation prints the decision, then the records it is based on. defaultMode
// is that of the backend in the configuration.
func printExplanation(to io.Writer, x routing.Explanation, defaultMode string) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
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
	fmt.Fprintln(w)
	for _, s := range x.Steps {
		mark := " "
		if s.Used {
			mark = "*"
		}
		fmt.Fprintf(w, "%s %s\t%s\n", mark, sanitize.Quote(s.Key), sanitize.Quote(s.Content))
	}
	return w.Flush()
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
