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

// limitAdmin is where an operator's orders go: the desk of Redis, or a running gateway.
type limitAdmin interface {
	listBans(ctx context.Context) ([]banEntry, error)
	addBan(ctx context.Context, o admin.BanRequest) (banEntry, error)
	removeBans(ctx context.Context, who string) (removedBans, error)
	showLimits(ctx context.Context, who string) (limitStatus, error)
	resetLimits(ctx context.Context, who string) (limitsReset, error)
}

// remoteAdmin is a running gateway as an office, through its admin address.
type remoteAdmin struct{ cfg config.Admin }

const (
	bansPath   = "/v1/bans"
	limitsPath = "/v1/limits"
)

func (a remoteAdmin) listBans(ctx context.Context) (all []banEntry, err error) {
	return all, a.do(ctx, adminRequest{http.MethodGet, bansPath, nil, nil}, &all)
}

func (a remoteAdmin) addBan(ctx context.Context, o admin.BanRequest) (done banEntry, err error) {
	return done, a.do(ctx, adminRequest{http.MethodPost, bansPath, nil, o}, &done)
}

func (a remoteAdmin) removeBans(ctx context.Context, subject string) (done removedBans, err error) {
	return done, a.do(ctx, adminRequest{http.MethodDelete, bansPath, url.Values{"who": {subject}}, nil}, &done)
}

func (a remoteAdmin) showLimits(ctx context.Context, subject string) (s limitStatus, err error) {
	return s, a.do(ctx, adminRequest{http.MethodGet, limitsPath, url.Values{"who": {subject}}, nil}, &s)
}

func (a remoteAdmin) resetLimits(ctx context.Context, subject string) (done limitsReset, err error) {
	return done, a.do(ctx, adminRequest{http.MethodDelete, limitsPath, url.Values{"who": {subject}}, nil}, &done)
}

func (a remoteAdmin) do(ctx context.Context, r adminRequest, into any) error {
	err := r.do(ctx, a.cfg, into)
	if errors.Is(err, errNoAdmin) {
		return errors.New("without redis in the configuration the running gateway must be asked, and it has no admin address: set admin.address")
	}
	const hint = "changes need a token: set admin.token_file"
	if err != nil && r.method != http.MethodGet && a.cfg.Token.IsZero() && !strings.Contains(err.Error(), hint) {
		return fmt.Errorf("%w (%s)", err, hint)
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
func (o *limitOptions) run(cmd *cobra.Command, call func(context.Context, limitAdmin) error) error {
	cfg, err := config.Load(o.file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), commandTimeout)
	defer cancel()
	if cfg.Redis == nil {
		return call(ctx, remoteAdmin{cfg.Admin})
	}
	setRedisLogger(zap.NewNop())
	rdb, err := dialRedisOnce(cfg)
	if err != nil {
		return err
	}
	defer closeRedis(rdb)
	gate, err := limit.New(limitConfig(cfg), rdb, limit.Hooks{}, zap.NewNop())
	if err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	return call(ctx, newLocalAdmin(cfg, gate))
}

// printResult prints what was done, or as JSON what came of it.
func (o *limitOptions) printResult(to io.Writer, result any, text string) error {
	if o.asJSON {
		return json.NewEncoder(to).Encode(result)
	}
	_, err := fmt.Fprintln(to, text)
	return err
}

func newBan() *cobra.Command {
	cmd := &cobra.Command{
		Use: "ban", Args: refuseArguments, RunE: showHelp,
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

// requireAddress is what add and del take.
func requireAddress(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one address or network is needed: %s", cmd.UseLine())
	}
	return nil
}

func newBanList(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show the bans, those that end soonest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return o.run(cmd, func(ctx context.Context, a limitAdmin) error {
				all, err := a.listBans(ctx)
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

func printBans(to io.Writer, bans []banEntry) error {
	if len(bans) == 0 {
		_, err := fmt.Fprintln(to, "nobody is banned")
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NETWORK\tENDS IN\tWHY\tTIMES\tNOTE")
	for _, b := range bans {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", quoteUnsafe(b.Network), timeLeft(b.Until), quoteUnsafe(b.Reason), b.Count, quoteUnsafe(b.Note))
	}
	return w.Flush()
}

// timeLeft is how long until then, to the second.
func timeLeft(until time.Time) time.Duration { return max(0, time.Until(until)).Round(time.Second) }

func newBanAdd(o *limitOptions) *cobra.Command {
	var request admin.BanRequest
	cmd := &cobra.Command{
		Use: "add ADDRESS|NETWORK", Short: "Ban an address or a network", Args: requireAddress,
		Long: `Ban an address or a network. An IPv6 address stands for its network of 64 bits. A ban that
is under way gets the new end.`,
		Example: `  imapgate ban add 192.0.2.7
  imapgate ban add 2001:db8::/32 --for 7d --why "ticket 4711"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Subject = args[0]
			return o.run(cmd, func(ctx context.Context, a limitAdmin) error {
				b, err := a.addBan(ctx, request)
				if err != nil {
					return fmt.Errorf("ban %s: %w", quoteUnsafe(request.Subject), err)
				}
				return o.printResult(cmd.OutOrStdout(), b, fmt.Sprintf("%s is banned for %v", quoteUnsafe(b.Network), request.Duration))
			})
		},
	}
	request.Duration = 24 * time.Hour
	cmd.Flags().Var((*durationFlag)(&request.Duration), "for", "how long, as 90m, 24h, 7d or 2w")
	cmd.Flags().StringVar(&request.Note, "why", "", "a note for whoever lists the bans")
	return cmd
}

func newBanDel(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "del ADDRESS|NETWORK", Short: "End bans, and forget the failures behind them", Args: requireAddress,
		Long: `End every ban that covers the address or something of the network, and forget the failed
logins behind it, so that the next wrong password does not ban it again.`,
		Example: "  imapgate ban del 192.0.2.7",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, func(ctx context.Context, a limitAdmin) error {
				l, err := a.removeBans(ctx, args[0])
				if err != nil {
					return fmt.Errorf("end the ban of %s: %w", quoteUnsafe(args[0]), err)
				}
				text := quoteUnsafe(args[0]) + " was not banned; its failed logins are forgotten"
				if len(l.Networks) > 0 {
					text = "no longer banned: " + quoteUnsafe(strings.Join(l.Networks, ", "))
				}
				return o.printResult(cmd.OutOrStdout(), l, text)
			})
		},
	}
}

func newLimits() *cobra.Command {
	cmd := &cobra.Command{
		Use: "limits", Args: refuseArguments, RunE: showHelp,
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
			return o.run(cmd, func(ctx context.Context, a limitAdmin) error {
				done, err := a.resetLimits(ctx, args[0])
				if err != nil {
					return fmt.Errorf("reset the limits of %s: %w", quoteUnsafe(args[0]), err)
				}
				return o.printResult(cmd.OutOrStdout(), done, "failed logins are forgotten: "+quoteUnsafe(done.User))
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
			return o.run(cmd, func(ctx context.Context, a limitAdmin) error {
				s, err := a.showLimits(ctx, args[0])
				if err != nil {
					return fmt.Errorf("show %s: %w", quoteUnsafe(args[0]), err)
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
func (s limitStatus) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, form string, args ...any) { fmt.Fprintf(w, name+"\t"+form+"\n", args...) }
	row("limits of", "%s", quoteUnsafe(s.Subject))
	if s.Exempt {
		row("exempt", "its address is not counted, delayed or banned")
	}
	row("sessions", "%d", s.Sessions)
	if s.Ban != nil {
		row("banned", "for %v: %s %s", timeLeft(s.Ban.Until), quoteUnsafe(s.Ban.Reason), quoteUnsafe(s.Ban.Note))
	}
	for _, f := range s.Failures {
		bound := "no limit"
		if f.Limit > 0 {
			bound = "of " + strconv.Itoa(f.Limit)
		}
		row("failed logins", "%d in %s, %s, %s", f.Count, withArticle(quoteUnsafe(f.Window)), bound, quoteUnsafe(f.Subject))
	}
	row("next login waits", "%v", s.Delay)
	if s.KnownNetworksOnly {
		row("may log in from", "known networks only")
	}
	if s.Uploads != nil {
		bytes := pluralize(s.Uploads.Today, "byte")
		if s.Uploads.Limit > 0 {
			bytes = fmt.Sprintf("%d of %s", s.Uploads.Today, pluralize(s.Uploads.Limit, "byte"))
		}
		row("uploaded today", "%s (UTC)", bytes)
	}
	for _, k := range s.KnownNetworks {
		row("known network", "%s, last login %s, %d failed in an hour", quoteUnsafe(k.Network), k.Last.Format(time.RFC3339), k.Failures)
	}
	return w.Flush()
}
