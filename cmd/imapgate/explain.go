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
		Use: "explain USER", Short: "Say where a user would go, and why", Args: oneUser,
		Long: `Say where a login of USER would go at this moment, which record decides, and how old
the answer is.

The running gateway is asked first, through its admin address, because it may hold an
older answer in its cache. When it does not answer, the records are read from here, and
the output says so.

It also says how many live sessions of USER this gateway has, and how many of them are at
another backend. They stay there, and write there, until they end.`,
		Example: "  imapgate route explain alice@example.org",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, args, func(ctx context.Context, t *routes) error {
				x, err := askGateway(ctx, t.cfg.Admin, t.user.String())
				asked := "gateway"
				if err != nil {
					asked = "records"
					x = t.router.Explain(ctx, t.user)
				}
				p := askPresence(ctx, t, x)
				if o.asJSON {
					return json.NewEncoder(t.out).Encode(struct {
						Asked string `json:"asked"`
						routing.Explanation
						Sessions presence `json:"sessions"`
					}{asked, x, p})
				}
				if err != nil {
					fmt.Fprintf(t.out, "The running gateway was not asked: %v.\nThis is what the records say; its cache may know an older answer.\n\n", err)
				} else {
					fmt.Fprintf(t.out, "Asked the running gateway at %s.\n\n", t.cfg.Admin.Address)
				}
				return errors.Join(sayExplanation(t.out, x), p.print(t.out))
			})
		},
	}
}

// askGateway asks a running gateway on this machine.
func askGateway(ctx context.Context, admin config.Admin, user string) (x routing.Explanation, err error) {
	q := question{http.MethodGet, "/v1/routes/explain", url.Values{"user": {user}}, nil}
	if err := q.ask(ctx, admin, &x); err != nil {
		return x, err
	}
	if x.User != user { // whatever listens there is not ours
		return x, fmt.Errorf("%s answers for another user", reachable(admin.Address))
	}
	return x, nil
}

// sayExplanation prints the decision, then the records it rests on.
func sayExplanation(to io.Writer, x routing.Explanation) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s\t%s\n", name, value)
		}
	}
	row("user", plain(x.User))
	if x.Error != "" {
		row("no route", plain(x.Error))
	} else {
		row("backend", plain(x.Backend))
		row("login there", plain(x.Login))
		row("mode", cmp.Or(plain(x.Mode), "the backend's"))
		row("decided by", plain(x.Key))
		row("known from", fmt.Sprintf("%s, %s old", plain(string(x.From)), x.Age.Round(time.Millisecond)))
	}
	row("changed to", changedTo(x.Next))
	row("changes", changes(x))
	row("records", records(x.Store))
	fmt.Fprintln(w)
	for _, s := range x.Steps {
		mark := " "
		if s.Used {
			mark = "*"
		}
		fmt.Fprintf(w, "%s %s\t%s\n", mark, plain(s.Key), plain(s.Says))
	}
	return w.Flush()
}

// records says whether Redis has the records it was seen to have, where it has not.
func records(s routing.Store) string {
	if s.State != routing.StoreEmptied && s.State != routing.StoreSuspect {
		return ""
	}
	where := ""
	if s.Node != "" {
		where = " at " + plain(s.Node)
	}
	return fmt.Sprintf("%d of %d that Redis was seen to have%s %s missing since %s; nobody is taken for unknown (imapgate route accept-empty ends that)",
		s.Missing, s.Missing+s.Present, where, are(s.Missing), s.Since.Local().Format(time.DateTime))
}

// changedTo says where logins go as soon as the gateway has noticed a change.
func changedTo(next *routing.Decision) string {
	switch {
	case next == nil:
		return ""
	case next.Error != "":
		return plain(next.Error) + "; the gateway has not noticed yet"
	}
	return fmt.Sprintf("%s, by %s; the gateway has not noticed yet", plain(next.Backend), plain(next.Key))
}

// changes says how soon a changed record would be noticed.
func changes(x routing.Explanation) string {
	switch {
	case x.RedisLeftAlone && x.Channel.Why != "":
		return "Redis did not answer and is left alone for a moment: " + plain(x.Channel.Why)
	case x.RedisLeftAlone:
		return "Redis did not answer and is left alone for a moment"
	case x.Channel.State == routing.ChannelOff:
		return ""
	case x.Channel.State == routing.ChannelUp:
		return "seen as they happen"
	}
	s := "seen after the cache's ttl; the channel is " + plain(x.Channel.State)
	if x.Channel.Why != "" {
		s += ": " + plain(x.Channel.Why)
	}
	return s
}
