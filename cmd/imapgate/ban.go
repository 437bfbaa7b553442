package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/internal/admin"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/config"
	"imapgate/internal/duration"
	"imapgate/internal/gateway"
	"imapgate/internal/sanitize"
)

// runLimits executes an operation in Redis, whose changes all gateways apply, or without
// Redis through the running gateway.
func runLimits[Request, Response any](cmd *cobra.Command, operation legacy.Operation[Request, Response],
	direct func(*gateway.LimitAdmin, context.Context, Request) (Response, error), request Request) (response Response, err error) {
	cfg, err := config.Load(configFile(cmd))
	if err != nil {
		return response, err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), commandTimeout)
	defer cancel()
	if cfg.Redis == nil {
		response, err = query(ctx, cfg.Admin, operation, request)
		return response, explainAdminError(err, cfg.Admin, operation.Method)
	}
	setRedisLogger(zap.NewNop())
	store, err := gateway.OpenStore(cfg)
	if err != nil {
		return response, err
	}
	defer store.Close()
	return direct(store.Limits, ctx, request)
}

// explainAdminError adds to an error what the configuration lacks.
func explainAdminError(err error, admin admin.Settings, method string) error {
	if errors.Is(err, errNoAdmin) {
		return errors.New("without redis in the configuration this command needs the running gateway, which has no admin address: set admin.address")
	}
	const hint = "changes need a token: set admin.token_file"
	if err != nil && method != http.MethodGet && admin.Token.IsZero() && !strings.Contains(err.Error(), hint) {
		return fmt.Errorf("%w (%s)", err, hint)
	}
	return err
}

func newBan() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ban",
		Short: "Show and change bans of addresses",
		Long: `Show and change bans of addresses and networks. With redis in the configuration a change
takes effect in every running gateway within a second. Without it the command uses the admin
address of the running gateway, which requires admin.token_file.

Connections from a banned address are refused. Open sessions continue. Users who recently
logged in from there are still let in, unless an operator placed the ban.`,
	}
	operatorFlags(cmd)
	return withSubcommands(cmd, newBanList(), newBanAdd(), newBanDel())
}

func newBanList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List bans, soonest to expire first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := runLimits(cmd, legacy.ListBans, (*gateway.LimitAdmin).ListBans, legacy.None{})
			if err != nil {
				return fmt.Errorf("list bans: %w", err)
			}
			return printResult(cmd, all, formatBans(all))
		},
	}
}

func formatBans(bans []legacy.Ban) string {
	if len(bans) == 0 {
		return "no active bans\n"
	}
	rows := []string{"NETWORK\tEXPIRES IN\tREASON\tCOUNT\tNOTE"}
	for _, b := range bans {
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%d\t%s", sanitize.Quote(b.Network), timeLeft(b.Until), sanitize.Quote(b.Reason), b.Count, sanitize.Quote(b.Note)))
	}
	return formatTable(rows)
}

// timeLeft returns the time until until, in whole seconds.
func timeLeft(until time.Time) string {
	return duration.Format(max(0, time.Until(until)).Round(time.Second))
}

func newBanAdd() *cobra.Command {
	var request legacy.BanRequest
	cmd := &cobra.Command{
		Use: "add ADDRESS|NETWORK", Short: "Ban an address or a network", Args: requireOne("address or network"),
		Long: `Ban an address or a network. An IPv6 address stands for its network of 64 bits. An existing
ban gets the new end.`,
		Example: `  imapgate ban add 192.0.2.7
  imapgate ban add 2001:db8::/32 --for 7d --note "ticket 4711"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Subject = args[0]
			b, err := runLimits(cmd, legacy.AddBan, (*gateway.LimitAdmin).AddBan, request)
			if err != nil {
				return fmt.Errorf("ban %s: %w", sanitize.Quote(request.Subject), err)
			}
			text := fmt.Sprintf("%s is banned for %s\n", sanitize.Quote(b.Network), duration.Format(time.Duration(request.Duration)))
			if len(b.Exempt) > 0 {
				text += fmt.Sprintf("warning: exempt by limits.exempt_networks: %s: the ban has no effect there\n", sanitize.Quote(strings.Join(b.Exempt, ", ")))
			}
			return printResult(cmd, b, text)
		},
	}
	request.Duration = legacy.Duration(24 * time.Hour)
	cmd.Flags().Var(&request.Duration, "for", "how long, as 90m, 24h, 7d or 2w")
	cmd.Flags().StringVar(&request.Note, "note", "", "a note for other operators, shown in the list of bans")
	cmd.Flags().StringVar(&request.Note, "why", "", "the former name of --note")
	_ = cmd.Flags().MarkHidden("why") // the flag was just made
	return cmd
}

func newBanDel() *cobra.Command {
	return &cobra.Command{
		Use: "del ADDRESS|NETWORK", Short: "Remove bans, and reset the failed logins that caused them", Args: requireOne("address or network"),
		Long: `Remove every ban that covers the address or a part of the network, and reset the failed
logins that caused it, so that the next wrong password does not cause a new ban.`,
		Example: "  imapgate ban del 192.0.2.7",
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := runLimits(cmd, legacy.RemoveBans, (*gateway.LimitAdmin).RemoveBans, args[0])
			if err != nil {
				return fmt.Errorf("remove the ban of %s: %w", sanitize.Quote(args[0]), err)
			}
			text := sanitize.Quote(args[0]) + " was not banned; its failed logins were reset"
			if len(l.Networks) > 0 {
				text = "no longer banned: " + sanitize.Quote(strings.Join(l.Networks, ", "))
			}
			return printResult(cmd, l, text+"\n")
		},
	}
}

func newLimits() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "limits",
		Short: "Show rate-limit counters, and reset them for a user",
	}
	operatorFlags(cmd)
	return withSubcommands(cmd, newLimitsShow(), newLimitsReset())
}

func newLimitsReset() *cobra.Command {
	return &cobra.Command{
		Use: "reset USER", Short: "Reset the failed logins of a user",
		Long: `Reset the failed logins of a user, so that they can log in again immediately from networks
where they are not known. Bans of addresses remain: see imapgate ban del.`,
		Example: "  imapgate limits reset alice@example.org",
		Args:    requireOne("user"),
		RunE: func(cmd *cobra.Command, args []string) error {
			done, err := runLimits(cmd, legacy.ResetLimits, (*gateway.LimitAdmin).ResetLimits, args[0])
			if err != nil {
				return fmt.Errorf("reset the limits of %s: %w", sanitize.Quote(args[0]), err)
			}
			return printResult(cmd, done, "failed logins were reset: "+sanitize.Quote(done.User)+"\n")
		},
	}
}

func newLimitsShow() *cobra.Command {
	return &cobra.Command{
		Use: "show USER|ADDRESS", Short: "Show sessions, failed logins, delay and ban of a user or an address",
		Long: `Show sessions, failed logins, delay and ban of a user or an address. With redis in the
configuration the numbers cover all gateways, without it the running gateway.`,
		Example: `  imapgate limits show alice@example.org
  imapgate limits show 192.0.2.7`,
		Args: requireOne("user or address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := runLimits(cmd, legacy.ShowLimits, (*gateway.LimitAdmin).ShowLimits, args[0])
			if err != nil {
				return fmt.Errorf("show %s: %w", sanitize.Quote(args[0]), err)
			}
			return printResult(cmd, s, formatLimits(s))
		},
	}
}

// formatLimits returns the status of a user or an address as a table.
func formatLimits(l legacy.LimitStatus) string {
	var rows []string
	row := func(name, form string, args ...any) { rows = append(rows, fmt.Sprintf(name+"\t"+form, args...)) }
	row("limits of", "%s", sanitize.Quote(l.Subject))
	if l.Exempt {
		row("exempt", "the address is not counted, delayed or banned")
	}
	row("sessions", "%d", l.Sessions)
	if l.Ban != nil {
		row("banned", "%v left (%s)", timeLeft(l.Ban.Until), describeReason(l.Ban))
	}
	for _, f := range l.Failures {
		bound := "no limit"
		if f.Limit > 0 {
			bound = strconv.Itoa(f.Limit)
		}
		subject := ""
		if f.Subject != l.Subject {
			subject = " from " + sanitize.Quote(f.Subject)
		}
		row("failed logins (1 "+sanitize.Quote(f.Window)+")", "%d / %s%s", f.Count, bound, subject)
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
		row("known network", "%s, last login %s, %d failed in the last hour", sanitize.Quote(k.Network), k.Last.Format(time.RFC3339), k.Failures)
	}
	return formatTable(rows)
}

func describeReason(b *legacy.Ban) string {
	texts := map[string]string{
		"failures": "too many failed logins", "neighbors": "too many banned networks nearby",
		"merged": "merged with other bans", "operator": "by an operator",
	}
	text := cmp.Or(texts[b.Reason], sanitize.Quote(b.Reason))
	if b.Note != "" {
		text += ": " + sanitize.Quote(b.Note)
	}
	return text
}
