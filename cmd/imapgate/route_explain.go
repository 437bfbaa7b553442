package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/routing"
)

func newRouteExplain(o *routeOptions) *cobra.Command {
	return &cobra.Command{
		Use: "explain USER", Short: "Say where a user would go, and why", Args: requireUser,
		Long: `Say where a login of USER would go at this moment, which record decides, and how old
the answer is.

The running gateway is asked first, through its admin address, because it may hold an
older answer in its cache. When it does not answer, the records are read from here, and
the output says so.

It also says how many live sessions of USER this gateway has, and how many of them are at
another backend. They stay there, and write there, until they end.`,
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
					fmt.Fprintf(t.out, "The running gateway was not asked: %v.\nThis is what the records say; its cache may know an older answer.\n\n", err)
				} else {
					fmt.Fprintf(t.out, "Asked the running gateway at %s.\n\n", t.cfg.Admin.Address)
				}
				return errors.Join(printExplanation(t.out, x), p.print(t.out))
			})
		},
	}
}

// fetchExplanation asks a running gateway on this machine.
func fetchExplanation(ctx context.Context, admin config.Admin, user string) (x routing.Explanation, err error) {
	q := adminRequest{http.MethodGet, "/v1/routes/explain", url.Values{"user": {user}}, nil}
	if err := q.do(ctx, admin, &x); err != nil {
		return x, err
	}
	if x.User != user { // whatever listens there is not ours
		return x, fmt.Errorf("%s answers for another user", dialableAddress(admin.Address))
	}
	return x, nil
}

// printExplanation prints the decision, then the records it rests on.
func printExplanation(to io.Writer, x routing.Explanation) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	row("user", quoteUnsafe(x.User))
	if x.Error != "" {
		row("no route", quoteUnsafe(x.Error))
	} else {
		row("backend", quoteUnsafe(x.Backend))
		row("login there", quoteUnsafe(x.Login))
		row("mode", cmp.Or(quoteUnsafe(x.Mode), "the backend's"))
		row("decided by", quoteUnsafe(x.Key))
		row("known from", fmt.Sprintf("%s, %s old", quoteUnsafe(string(x.Origin)), x.Age.Round(time.Millisecond)))
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
		fmt.Fprintf(w, "%s %s\t%s\n", mark, quoteUnsafe(s.Key), quoteUnsafe(s.Content))
	}
	return w.Flush()
}

// formatStoreState says whether Redis has the records it was seen to have, where it has not.
func formatStoreState(s routing.StoreStatus) string {
	if s.State != routing.StoreEmptied && s.State != routing.StoreSuspect {
		return ""
	}
	atNode := ""
	if s.Node != "" {
		atNode = " at " + quoteUnsafe(s.Node)
	}
	return fmt.Sprintf("%d of %d that Redis was seen to have%s %s missing since %s; nobody is taken for unknown (imapgate route accept-empty ends that)",
		s.Missing, s.Missing+s.Present, atNode, isOrAre(s.Missing), s.Since.Local().Format(time.DateTime))
}

// formatPendingChange says where logins go as soon as the gateway has noticed a change.
func formatPendingChange(next *routing.Decision) string {
	switch {
	case next == nil:
		return ""
	case next.Error != "":
		return quoteUnsafe(next.Error) + "; the gateway has not noticed yet"
	}
	return fmt.Sprintf("%s, by %s; the gateway has not noticed yet", quoteUnsafe(next.Backend), quoteUnsafe(next.Key))
}

// formatChangeDelay says how soon a changed record would be noticed.
func formatChangeDelay(x routing.Explanation) string {
	switch {
	case x.BreakerOpen && x.Invalidation.Error != "":
		return "Redis did not answer and is left alone for a moment: " + quoteUnsafe(x.Invalidation.Error)
	case x.BreakerOpen:
		return "Redis did not answer and is left alone for a moment"
	case x.Invalidation.State == routing.InvalidationOff:
		return ""
	case x.Invalidation.State == routing.InvalidationUp:
		return "seen as they happen"
	}
	s := "seen after the cache's ttl; the channel is " + quoteUnsafe(x.Invalidation.State)
	if x.Invalidation.Error != "" {
		s += ": " + quoteUnsafe(x.Invalidation.Error)
	}
	return s
}
