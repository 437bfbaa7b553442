package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/client"
	"imapgate/internal/sanitize"
	"imapgate/internal/sleep"
)

func newBackends() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backends [BACKEND]", Args: cobra.MaximumNArgs(1),
		Short: "Show the backends and their addresses, and take addresses out of use",
		Long: `Show the backends as all gateways see them: sessions by mode, the state of each address,
and what the loss of a backend would mean to its sessions. The subcommands take an address out
of use, at all gateways, until resume.

A backend that violates the IMAP protocol for five users within an hour, and for one user in
every hundred sessions there, gets its new sessions spliced, for an hour at first; a user with
violations in two sessions, theirs. MULTIPLEXED says so; the log has the details.`,
		Example: `  imapgate backends
  imapgate backends east --watch
  imapgate backends evacuate mail-e1.internal:993 --dry-run
  imapgate backends evacuate mail-e1.internal:993 --wait`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			return show(cmd, func(ctx context.Context) (any, string, error) {
				if len(args) == 1 {
					answer, err := client.Do(ctx, c, api.GetBackend, &api.BackendName{Name: args[0]})
					if err != nil {
						return nil, "", err
					}
					return answer, formatBackends(cmd, []api.Backend{answer.Backend}), reportMissing(cmd, answer.Gateways)
				}
				list, err := client.Do(ctx, c, api.ListBackends, &api.Scope{})
				if err != nil {
					return nil, "", err
				}
				return list, formatBackends(cmd, list.Backends), reportMissing(cmd, list.Gateways)
			})
		},
		ValidArgsFunction: completeFrom(backendNames),
	}
	watchFlag(cmd)
	cmd.AddCommand(
		newAddressCommand("drain", api.DrainAddress, "Send no new users to an address; those with sessions there may come back"),
		newAddressCommand("resume", api.ResumeAddress, "Use an address again, as its health permits"),
		newAddressCommand("disable", api.DisableAddress, "Use an address for no login at all; its sessions stay"),
		newAddressCommand("evacuate", api.EvacuateAddress, "Move the sessions of an address to the others"),
	)
	return serverFlags(cmd)
}

func newAddressCommand(verb string, operation api.Operation[api.AddressRequest, api.AddressAnswer], short string) *cobra.Command {
	var backend string
	var dryRun, wait bool
	cmd := &cobra.Command{
		Use: verb + " ADDRESS", Short: short, Args: requireOne("address"),
		Long: short + `. It applies to all gateways and
outlasts restarts. An address is host:port, as imapgate backends shows it.

Sessions in mode resume leave an address that is evacuated at their next quiet moment, and
their clients notice nothing; others end within 30 seconds, spread evenly. With --dry-run
nothing changes: the command prints what would become of the sessions.`,
		Example: "  imapgate backends " + verb + " mail-e1.internal:993",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			if backend == "" {
				if backend, err = findBackend(cmd.Context(), c, args[0]); err != nil {
					return err
				}
			}
			answer, err := client.Do(cmd.Context(), c, operation, &api.AddressRequest{Name: backend, Address: args[0], DryRun: dryRun})
			if err != nil {
				return err
			}
			if err := printResult(cmd, answer, formatOrder(verb, &answer, dryRun)); err != nil {
				return err
			}
			if wait && !dryRun {
				err = waitForAddress(cmd, c, &answer)
			}
			return errors.Join(err, reportMissing(cmd, answer.Gateways))
		},
		ValidArgsFunction: completeFrom(addressNames),
	}
	cmd.Flags().StringVar(&backend, "backend", "", "the backend, if several have the address")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; say what would become of the sessions")
	if verb == "drain" || verb == "evacuate" {
		cmd.Flags().BoolVar(&wait, "wait", false, "show the progress until no session is left there")
	}
	completeWords(cmd)
	return cmd
}

// findBackend returns the one backend with an address.
func findBackend(ctx context.Context, c *client.Client, address string) (string, error) {
	list, err := client.Do(ctx, c, api.ListBackends, &api.Scope{Scope: "gateway"})
	if err != nil {
		return "", err
	}
	var found, all []string
	for _, b := range list.Backends {
		for _, a := range b.Addresses {
			all = append(all, a.Address)
			if a.Address == address {
				found = append(found, b.Name)
			}
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no backend has the address %s; the addresses are %s", sanitize.Quote(address), sanitize.Line(strings.Join(all, ", "), 1000))
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%w: the backends %s have the address %s: name one with --backend", errUsage, strings.Join(found, ", "), sanitize.Quote(address))
}

// formatOrder describes what an order for an address does.
func formatOrder(verb string, a *api.AddressAnswer, dryRun bool) string {
	state, where := "is "+a.State, describeScope(a.Gateways)
	if dryRun {
		state, where = "would be "+a.State, "nothing has changed"
	}
	text := fmt.Sprintf("%s of %s %s, %s; %s there\n", a.Address, a.Backend, state, where, pluralize(a.Sessions, "session"))
	if verb != "evacuate" || a.Sessions == 0 {
		return text
	}
	return text + formatForecast(&a.Forecast)
}

// formatForecast returns "812 move unnoticed, 3 after a pause, 5 end: 4 spliced, 1 view".
func formatForecast(f *api.Forecast) string {
	text := fmt.Sprintf("%d move unnoticed, %d after a pause, %d end", f.Yes, f.Pause, f.No)
	if f.No > 0 {
		text += ": " + joinCounts(f.Obstacles)
	}
	return text + "\n"
}

// waitForAddress shows how many sessions are left at an address until there is none.
func waitForAddress(cmd *cobra.Command, c *client.Client, a *api.AddressAnswer) error {
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	for last := -1; ; {
		answer, err := client.Do(ctx, c, api.GetBackend, &api.BackendName{Name: a.Backend})
		if ctx.Err() != nil {
			return errors.New("interrupted; the order stands")
		}
		if err != nil {
			return err
		}
		left := 0
		for _, address := range answer.Backend.Addresses {
			if address.Address == a.Address {
				left = address.Sessions
			}
		}
		if left != last {
			last = left
			if err := printResult(cmd, map[string]any{"address": a.Address, "sessions": left}, pluralize(left, "session")+" left\n"); err != nil {
				return err
			}
		}
		if left == 0 {
			return nil
		}
		if sleep.For(ctx, time.Second/2) != nil {
			return errors.New("interrupted; the order stands")
		}
	}
}

// formatBackends returns a table of the backends, and one of their addresses.
func formatBackends(cmd *cobra.Command, backends []api.Backend) string {
	var rows, addresses [][]string
	for _, b := range backends {
		rows = append(rows, []string{
			sanitize.Line(b.Name, 63), b.Mode, formatSessions(&b), fmt.Sprintf("%.1f", b.LoginsPerSecond), fmt.Sprintf("%d of %d", b.IfLost.Yes+b.IfLost.Pause, b.IfLost.Yes+b.IfLost.Pause+b.IfLost.No),
			formatMultiplexed(&b),
		})
		for _, a := range b.Addresses {
			addresses = append(addresses, []string{
				sanitize.Line(a.Address, 300), sanitize.Line(b.Name, 63), coloredState(cmd, a.State), since(a.Since.Time), fmt.Sprint(a.Priority, "/", a.Weight), fmt.Sprint(a.Sessions),
				fmt.Sprintf("%.1f", a.LoginsPerSecond), formatLatency(a.Latency), fmt.Sprint(a.Failures), describeAddress(&a),
			})
		}
	}
	text := newTable(screenWidth(cmd), []string{"BACKEND", "MODE", "SESSIONS", "LOGINS/S", "SURVIVE", "MULTIPLEXED"}, rows)
	for _, b := range backends {
		if b.Maintenance != "" {
			text += fmt.Sprintf("%s is under maintenance: %s\n", sanitize.Line(b.Name, 63), sanitize.Line(b.Maintenance, 200))
		}
	}
	return text + "\n" + newTable(screenWidth(cmd), []string{"ADDRESS", "BACKEND", "STATE", "FOR", "PRIO/WEIGHT", "SESSIONS", "LOGINS/S", "LATENCY", "FAILED", "WHY"}, addresses)
}

// describeAddress says why an address is not up, or that the gateways differ about it.
func describeAddress(a *api.Address) string {
	why := a.Why
	states := make(map[string]bool)
	for _, state := range a.ByGateway {
		states[state] = true
	}
	if len(states) > 1 {
		var parts []string
		for _, name := range slices.Sorted(maps.Keys(a.ByGateway)) {
			parts = append(parts, name+" sees it "+a.ByGateway[name])
		}
		why = strings.Join(parts, ", ") + "; " + why
	}
	return sanitize.Line(why, 300)
}

// formatSessions returns "7", or "7 (2 in splice)" if some are not in the backend's
// own mode.
func formatSessions(b *api.Backend) string {
	total := 0
	var other []string
	for _, mode := range slices.Sorted(maps.Keys(b.Sessions)) {
		total += b.Sessions[mode]
		if mode != b.Mode {
			other = append(other, fmt.Sprintf("%d in %s", b.Sessions[mode], sanitize.Quote(mode)))
		}
	}
	if len(other) == 0 {
		return fmt.Sprint(total)
	}
	return fmt.Sprintf("%d (%s)", total, strings.Join(other, ", "))
}

// formatMultiplexed describes whether new sessions are multiplexed.
func formatMultiplexed(b *api.Backend) string {
	users := pluralize(b.AffectedUsers, "user")
	switch {
	case b.Spliced:
		return "no, spliced until " + b.SplicedUntil.Format(time.RFC3339) + " after protocol violations"
	case b.SplicedUsers > 0 && b.SplicedUsers == b.AffectedUsers:
		return fmt.Sprintf("yes, except for %s with protocol violations in the last hour", users)
	case b.SplicedUsers > 0:
		return fmt.Sprintf("yes, except for %d of the %s with protocol violations in the last hour", b.SplicedUsers, users)
	case b.AffectedUsers > 0:
		return fmt.Sprintf("yes; %s had protocol violations in the last hour", users)
	case b.Mode == "splice":
		return "no"
	}
	return "yes"
}
