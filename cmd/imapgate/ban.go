package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/internal/admin"
	"imapgate/internal/config"
	"imapgate/internal/limit"
)

// office is where an operator's orders go: the desk of Redis, or a running gateway.
type office interface {
	bans(ctx context.Context) ([]banLine, error)
	ban(ctx context.Context, o admin.Order) (banLine, error)
	unban(ctx context.Context, who string) (lifted, error)
	show(ctx context.Context, who string) (standing, error)
	resetLimits(ctx context.Context, who string) (limitsReset, error)
}

// counter is a running gateway as an office, through its admin address.
type counter struct{ admin config.Admin }

const (
	bansPath   = "/v1/bans"
	limitsPath = "/v1/limits"
)

func (c counter) bans(ctx context.Context) (all []banLine, err error) {
	return all, c.ask(ctx, question{http.MethodGet, bansPath, nil, nil}, &all)
}

func (c counter) ban(ctx context.Context, o admin.Order) (done banLine, err error) {
	return done, c.ask(ctx, question{http.MethodPost, bansPath, nil, o}, &done)
}

func (c counter) unban(ctx context.Context, who string) (done lifted, err error) {
	return done, c.ask(ctx, question{http.MethodDelete, bansPath, url.Values{"who": {who}}, nil}, &done)
}

func (c counter) show(ctx context.Context, who string) (s standing, err error) {
	return s, c.ask(ctx, question{http.MethodGet, limitsPath, url.Values{"who": {who}}, nil}, &s)
}

func (c counter) resetLimits(ctx context.Context, who string) (done limitsReset, err error) {
	return done, c.ask(ctx, question{http.MethodDelete, limitsPath, url.Values{"who": {who}}, nil}, &done)
}

func (c counter) ask(ctx context.Context, q question, into any) error {
	err := q.ask(ctx, c.admin, into)
	if errors.Is(err, errNoAdmin) {
		return errors.New("without redis in the configuration the running gateway must be asked, and it has no admin address: set admin.address")
	}
	const cure = "changes need a token: set admin.token_file"
	if err != nil && q.method != http.MethodGet && c.admin.Token.IsZero() && !strings.Contains(err.Error(), cure) {
		return fmt.Errorf("%w (%s)", err, cure)
	}
	return err
}

// limitOptions are the flags of ban and limits.
type limitOptions struct {
	file   string
	asJSON bool
}

func (o *limitOptions) flags(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVarP(&o.file, "config", "c", defaultConfig, "configuration file")
	cmd.PersistentFlags().BoolVar(&o.asJSON, "json", false, "print JSON")
	_ = cmd.MarkPersistentFlagFilename("config", "yaml", "yml") // the flag was just made
}

// run opens the office for one call: that of Redis, which all gateways heed, or
// without Redis the running gateway.
func (o *limitOptions) run(cmd *cobra.Command, call func(context.Context, office) error) error {
	cfg, err := config.Load(o.file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), routeTime)
	defer cancel()
	if cfg.Redis == nil {
		return call(ctx, counter{cfg.Admin})
	}
	quietRedis(zap.NewNop())
	rdb, err := dialRedisOnce(cfg)
	if err != nil {
		return err
	}
	defer closeRedis(rdb)
	gate, err := limit.New(limitConfig(cfg), rdb, limit.Hooks{}, zap.NewNop())
	if err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	return call(ctx, newDesk(cfg, gate))
}

// done prints what was done, or as JSON what came of it.
func (o *limitOptions) done(to io.Writer, what any, text string) error {
	if o.asJSON {
		return json.NewEncoder(to).Encode(what)
	}
	_, err := fmt.Fprintln(to, text)
	return err
}

func newBan() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ban", Args: noCommand, RunE: showHelp,
		Short: "See and change which addresses are banned",
		Long: `See and change which addresses and networks are banned. With redis in the configuration
a change takes effect in every running gateway within a second; without it the running
gateway is asked through its admin address, for which admin.token_file must be set.

Connections from a banned address are refused. Sessions that are open stay open. Who has
logged in from there of late still may, unless the ban is an operator's.`,
	}
	var o limitOptions
	o.flags(cmd)
	cmd.AddCommand(newBanList(&o), newBanAdd(&o), newBanDel(&o))
	return cmd
}

// oneAddress is what add and del take.
func oneAddress(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one address or network is needed: %s", cmd.UseLine())
	}
	return nil
}

func newBanList(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show the bans, those that end soonest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd, func(ctx context.Context, f office) error {
				all, err := f.bans(ctx)
				if err != nil {
					return fmt.Errorf("list bans: %w", err)
				}
				if o.asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(all)
				}
				return printBans(cmd.OutOrStdout(), all)
			})
		},
	}
}

func printBans(to io.Writer, all []banLine) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(to, "nobody is banned")
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NETWORK\tENDS IN\tWHY\tTIMES\tNOTE")
	for _, b := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", plain(b.Network), left(b.Until), plain(b.Why), b.Count, plain(b.Note))
	}
	return w.Flush()
}

// left is how long until then, to the second.
func left(until time.Time) time.Duration { return max(0, time.Until(until)).Round(time.Second) }

func newBanAdd(o *limitOptions) *cobra.Command {
	var order admin.Order
	cmd := &cobra.Command{
		Use: "add ADDRESS|NETWORK", Short: "Ban an address or a network", Args: oneAddress,
		Long: `Ban an address or a network. An IPv6 address stands for its network of 64 bits. A ban that
is under way gets the new end.`,
		Example: `  imapgate ban add 192.0.2.7
  imapgate ban add 2001:db8::/32 --for 7d --why "ticket 4711"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			order.Who = args[0]
			return o.run(cmd, func(ctx context.Context, f office) error {
				b, err := f.ban(ctx, order)
				if err != nil {
					return fmt.Errorf("ban %s: %w", plain(order.Who), err)
				}
				return o.done(cmd.OutOrStdout(), b, fmt.Sprintf("%s is banned for %v", plain(b.Network), order.For))
			})
		},
	}
	order.For = 24 * time.Hour
	cmd.Flags().Var((*durationFlag)(&order.For), "for", "how long, as 90m, 24h, 7d or 2w")
	cmd.Flags().StringVar(&order.Why, "why", "", "a note for whoever lists the bans")
	return cmd
}

func newBanDel(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "del ADDRESS|NETWORK", Short: "End bans, and forget the failures behind them", Args: oneAddress,
		Long: `End every ban that covers the address or something of the network, and forget the failed
logins behind it, so that the next wrong password does not ban it again.`,
		Example: "  imapgate ban del 192.0.2.7",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, func(ctx context.Context, f office) error {
				l, err := f.unban(ctx, args[0])
				if err != nil {
					return fmt.Errorf("end the ban of %s: %w", plain(args[0]), err)
				}
				text := plain(args[0]) + " was not banned; its failed logins are forgotten"
				if len(l.Networks) > 0 {
					text = "no longer banned: " + plain(strings.Join(l.Networks, ", "))
				}
				return o.done(cmd.OutOrStdout(), l, text)
			})
		},
	}
}

func newLimits() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limits", Args: noCommand, RunE: showHelp,
		Short: "Show rate-limit counters, and reset them for a user",
	}
	var o limitOptions
	o.flags(cmd)
	cmd.AddCommand(newLimitsShow(&o), newLimitsReset(&o))
	return cmd
}

func newLimitsReset(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "reset USER", Short: "Forget the failed logins of a user",
		Long: `Forget the failed logins of a user, so that they can log in again immediately from networks
where they are not known. Bans of addresses stay: see imapgate ban del.`,
		Example: "  imapgate limits reset alice@example.org",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("one user is needed: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, func(ctx context.Context, f office) error {
				done, err := f.resetLimits(ctx, args[0])
				if err != nil {
					return fmt.Errorf("reset the limits of %s: %w", plain(args[0]), err)
				}
				return o.done(cmd.OutOrStdout(), done, "failed logins are forgotten: "+plain(done.User))
			})
		},
	}
}

func newLimitsShow(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "show USER|ADDRESS", Short: "Show sessions, failed logins, delay and ban of a user or an address",
		Long: `Show sessions, failed logins, delay and ban of a user or an address: with redis in the
configuration those of all gateways together, without it those of the running gateway.`,
		Example: `  imapgate limits show alice@example.org
  imapgate limits show 192.0.2.7`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("one user or address is needed: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, func(ctx context.Context, f office) error {
				s, err := f.show(ctx, args[0])
				if err != nil {
					return fmt.Errorf("show %s: %w", plain(args[0]), err)
				}
				if o.asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(s)
				}
				return s.print(cmd.OutOrStdout())
			})
		},
	}
}

// print prints it as a table.
func (s standing) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, form string, args ...any) { fmt.Fprintf(w, name+"\t"+form+"\n", args...) }
	row("limits of", "%s", plain(s.Subject))
	if s.Exempt {
		row("exempt", "its address is not counted, delayed or banned")
	}
	row("sessions", "%d", s.Sessions)
	if s.Banned != nil {
		row("banned", "for %v: %s %s", left(s.Banned.Until), plain(s.Banned.Why), plain(s.Banned.Note))
	}
	for _, f := range s.Failed {
		most := "no limit"
		if f.Most > 0 {
			most = "of " + strconv.Itoa(f.Most)
		}
		row("failed logins", "%d in %s, %s, %s", f.Count, aSpan(plain(f.In)), most, plain(f.Of))
	}
	row("next login waits", "%v", s.Delay)
	if s.Closed {
		row("may log in from", "known networks only")
	}
	if s.Uploads != nil {
		bytes := counted(s.Uploads.Today, "byte")
		if s.Uploads.Most > 0 {
			bytes = fmt.Sprintf("%d of %s", s.Uploads.Today, counted(s.Uploads.Most, "byte"))
		}
		row("uploaded today", "%s (UTC)", bytes)
	}
	for _, k := range s.Known {
		row("known network", "%s, last login %s, %d failed in an hour", plain(k.Network), k.Last.Format(time.RFC3339), k.Failed)
	}
	return w.Flush()
}
