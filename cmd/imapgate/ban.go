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

// limitAdmin executes an operator's commands: directly in Redis, or through a
// running gateway.
type limitAdmin interface {
	listBans(ctx context.Context) ([]banEntry, error)
	addBan(ctx context.Context, o admin.BanRequest) (banEntry, error)
	removeBans(ctx context.Context, who string) (removedBans, error)
	showLimits(ctx context.Context, who string) (limitStatus, error)
	resetLimits(ctx context.Context, who string) (limitsReset, error)
}

// remoteAdmin is the limitAdmin of a running gateway, through its admin address.
type remoteAdmin struct{ cfg admin.Settings }

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
		return errors.New("without redis in the configuration this command needs the running gateway, which has no admin address: set admin.address")
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

// run calls call with the limitAdmin of Redis, whose changes all gateways apply, or
// without Redis with that of the running gateway.
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

// printResult prints text, or result as JSON.
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
		Short: "Show and change bans of addresses",
		Long: `Show and change bans of addresses and networks. With redis in the configuration a change
takes effect in every running gateway within a second. Without it the command uses the admin
address of the running gateway, which requires admin.token_file.

Connections from a banned address are refused. Open sessions continue. Users who recently
logged in from there are still let in, unless an operator placed the ban.`,
	}
	var o limitOptions
	o.flags(cmd)
	cmd.AddCommand(newBanList(&o), newBanAdd(&o), newBanDel(&o))
	return cmd
}

// requireAddress requires one argument, the address or network.
func requireAddress(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one address or network is needed: %s", cmd.UseLine())
	}
	return nil
}

func newBanList(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List bans, soonest to expire first", Args: cobra.NoArgs,
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
		_, err := fmt.Fprintln(to, "no active bans")
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NETWORK\tEXPIRES IN\tREASON\tCOUNT\tNOTE")
	for _, b := range bans {
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", quoteUnsafe(b.Network), timeLeft(b.Until), quoteUnsafe(b.Reason), b.Count, quoteUnsafe(b.Note))
	}
	return w.Flush()
}

// timeLeft returns the time until until, in whole seconds.
func timeLeft(until time.Time) time.Duration { return max(0, time.Until(until)).Round(time.Second) }

func newBanAdd(o *limitOptions) *cobra.Command {
	var request admin.BanRequest
	cmd := &cobra.Command{
		Use: "add ADDRESS|NETWORK", Short: "Ban an address or a network", Args: requireAddress,
		Long: `Ban an address or a network. An IPv6 address stands for its network of 64 bits. An existing
ban gets the new end.`,
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
	cmd.Flags().StringVar(&request.Note, "why", "", "a note for other operators, shown in the list of bans")
	return cmd
}

func newBanDel(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "del ADDRESS|NETWORK", Short: "Remove bans, and reset the failed logins that caused them", Args: requireAddress,
		Long: `Remove every ban that covers the address or a part of the network, and reset the failed
logins that caused it, so that the next wrong password does not cause a new ban.`,
		Example: "  imapgate ban del 192.0.2.7",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, func(ctx context.Context, a limitAdmin) error {
				l, err := a.removeBans(ctx, args[0])
				if err != nil {
					return fmt.Errorf("remove the ban of %s: %w", quoteUnsafe(args[0]), err)
				}
				text := quoteUnsafe(args[0]) + " was not banned; its failed logins were reset"
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
		Use: "reset USER", Short: "Reset the failed logins of a user",
		Long: `Reset the failed logins of a user, so that they can log in again immediately from networks
where they are not known. Bans of addresses remain: see imapgate ban del.`,
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
				return o.printResult(cmd.OutOrStdout(), done, "failed logins were reset: "+quoteUnsafe(done.User))
			})
		},
	}
}

func newLimitsShow(o *limitOptions) *cobra.Command {
	return &cobra.Command{
		Use: "show USER|ADDRESS", Short: "Show sessions, failed logins, delay and ban of a user or an address",
		Long: `Show sessions, failed logins, delay and ban of a user or an address. With redis in the
configuration the numbers cover all gateways, without it the running gateway.`,
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

// print prints the status as a table.
func (l limitStatus) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, form string, args ...any) { fmt.Fprintf(w, name+"\t"+form+"\n", args...) }
	row("limits of", "%s", quoteUnsafe(l.Subject))
	if l.Exempt {
		row("exempt", "the address is not counted, delayed or banned")
	}
	row("sessions", "%d", l.Sessions)
	if l.Ban != nil {
		row("banned", "%v left (%s)", timeLeft(l.Ban.Until), l.Ban.describeReason())
	}
	for _, f := range l.Failures {
		bound := "no limit"
		if f.Limit > 0 {
			bound = strconv.Itoa(f.Limit)
		}
		subject := ""
		if f.Subject != l.Subject {
			subject = " from " + quoteUnsafe(f.Subject)
		}
		row("failed logins (1 "+quoteUnsafe(f.Window)+")", "%d / %s%s", f.Count, bound, subject)
	}
	row("delay of the next login", "%v", l.Delay)
	if l.KnownNetworksOnly {
		row("may log in from", "known networks only")
	}
	if l.Uploads != nil {
		bytes := pluralize(l.Uploads.Today, "byte")
		if l.Uploads.Limit > 0 {
			bytes = fmt.Sprintf("%d of %s", l.Uploads.Today, pluralize(l.Uploads.Limit, "byte"))
		}
		row("uploaded today", "%s (UTC)", bytes)
	}
	for _, k := range l.KnownNetworks {
		row("known network", "%s, last login %s, %d failed in the last hour", quoteUnsafe(k.Network), k.Last.Format(time.RFC3339), k.Failures)
	}
	return w.Flush()
}

// describeReason describes the ban's reason and its note.
func (b banEntry) describeReason() string {
	texts := map[string]string{
		"failures": "too many failed logins", "neighbors": "too many banned networks nearby",
		"merged": "merged with other bans", "operator": "by an operator",
	}
	text := cmp.Or(texts[b.Reason], quoteUnsafe(b.Reason))
	if b.Note != "" {
		text += ": " + quoteUnsafe(b.Note)
	}
	return text
}
