package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/client"
	"imapgate/internal/sanitize"
)

func newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what matters: alerts, sessions, backends, Redis, configuration", Args: cobra.NoArgs,
		Long: `Show the state of one gateway on one screen: first what needs an operator, then its
sessions, backends, Redis, audit log, configuration and certificates.

It asks the gateway on this machine through its admin socket, or the one of --server.`,
		Example: `  imapgate status
  imapgate status --watch
  imapgate status --server https://gw-b:9143 --token-file ~/.imapgate-token`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			return show(cmd, func(ctx context.Context) (any, string, error) {
				s, err := client.Do(ctx, c, api.ShowStatus, &api.None{})
				return s, formatStatus(cmd, &s), err
			})
		},
	}
	watchFlag(cmd)
	return serverFlags(cmd)
}

// formatStatus returns the screen of a status.
func formatStatus(cmd *cobra.Command, s *api.Status) string {
	var b strings.Builder
	for _, a := range s.Alerts {
		fmt.Fprintf(&b, "%s %s\n", colored(cmd, text.FgRed, "ALERT"), sanitize.Line(a.Text, 500))
	}
	if len(s.Alerts) > 0 {
		b.WriteString("\n")
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	g := &s.Gateway
	row("gateway", "%s, version %s, pid %d", sanitize.Line(g.Name, 100), sanitize.Line(g.Version, 100), g.PID)
	row("state", "%s, up %s", coloredState(cmd, g.State), since(g.Started.Time))
	row("sessions", "%s, %.1f logins/s", formatCounts(s.Sessions.Total, s.Sessions.ByMode), s.Sessions.LoginsPerSecond)
	if s.Sessions.Total > 0 {
		row("", "(%s)", joinCounts(s.Sessions.ByState))
	}
	for i, l := range s.Listeners {
		row(firstOnly(i, "listeners"), "%s  tls: %s", sanitize.Line(l.Address, 100), l.TLS)
	}
	for i, be := range s.Backends {
		addresses := ""
		if len(be.Addresses) > 0 {
			addresses = ", addresses: " + formatStates(cmd, be.Addresses)
		}
		row(firstOnly(i, "backends"), "%s: %s%s", sanitize.Line(be.Name, 63), pluralize(be.Sessions, "session"), addresses)
	}
	switch {
	case !s.Redis.Configured:
		row("redis", "not configured")
	case s.Redis.Connected:
		row("redis", "%s", coloredState(cmd, "up"))
	default:
		row("redis", "%s: %s", coloredState(cmd, "down"), sanitize.Line(s.Redis.Error, 300))
	}
	for i, sink := range s.Audit {
		row(firstOnly(i, "audit"), "%s: %s, %s lost", sanitize.Line(sink.Name, 100), coloredState(cmd, sink.State), pluralize(sink.Lost, "record"))
	}
	row("configuration", "%s, loaded %s ago", sanitize.Line(s.Config.File, 300), since(s.Config.LoadedAt.Time))
	if r := s.Config.LastReload; !r.At.IsZero() {
		result := "accepted"
		if r.Error != "" {
			result = "refused"
		}
		row("last reload", "%s, %s ago", result, since(r.At.Time))
	}
	for i, c := range s.Certificates {
		row(firstOnly(i, "certificates"), "%s until %s", sanitize.Line(c.File, 300), c.NotAfter.Format("2006-01-02"))
	}
	return b.String()
}

// firstOnly returns the label of the first of several rows.
func firstOnly(i int, label string) string {
	if i > 0 {
		return ""
	}
	return label
}

// joinCounts returns "5 resume, 2 splice", without those that are 0.
func joinCounts(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if counts[name] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[name], sanitize.Line(name, 40)))
		}
	}
	return strings.Join(parts, ", ")
}

// formatCounts returns "7 (5 resume, 2 splice)".
func formatCounts(total int, counts map[string]int) string {
	if parts := joinCounts(counts); parts != "" {
		return fmt.Sprintf("%d (%s)", total, parts)
	}
	return fmt.Sprint(total)
}

// formatStates returns "2 up, 1 down".
func formatStates(cmd *cobra.Command, states map[string]int) string {
	var parts []string
	for _, state := range slices.Sorted(maps.Keys(states)) {
		parts = append(parts, fmt.Sprintf("%d %s", states[state], coloredState(cmd, state)))
	}
	return strings.Join(parts, ", ")
}

func newGateways() *cobra.Command {
	cmd := &cobra.Command{
		Use: "gateways", Short: "Show the gateways of the fleet", Args: cobra.NoArgs,
		Long: `Show the gateways that share this Redis, as of their last heartbeat. A gateway that has
been silent for 45 seconds is no longer shown. Without Redis there is only the one that is asked.`,
		Example: "  imapgate gateways\n  imapgate gateways --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			return show(cmd, func(ctx context.Context) (any, string, error) {
				list, err := client.Do(ctx, c, api.ListGateways, &api.None{})
				if err == nil && list.Error != "" {
					fmt.Fprintln(cmd.ErrOrStderr(), "imapgate:", sanitize.Line(list.Error, 300))
					err = errPartial
				}
				var rows [][]string
				for _, g := range list.Gateways {
					rows = append(rows, []string{
						sanitize.Line(g.Name, 100), coloredState(cmd, g.State), fmt.Sprint(g.Sessions), fmt.Sprintf("%.1f", g.LoginsPerSecond),
						since(g.Started.Time), since(g.Heartbeat.Time), sanitize.Line(g.Version, 60), orDash(sanitize.Line(g.API, 100)), g.ID,
					})
				}
				return list, newTable(screenWidth(cmd), []string{"NAME", "STATE", "SESSIONS", "LOGINS/S", "UP", "HEARD", "VERSION", "API", "ID"}, rows), err
			})
		},
	}
	watchFlag(cmd)
	return serverFlags(cmd)
}

func newHealth() *cobra.Command {
	cmd := &cobra.Command{
		Use: "health", Short: "Check that the gateway on this machine accepts clients", Args: cobra.NoArgs,
		Long: `Ask the gateway whether it accepts clients, and exit with status 0 if it does: for
Docker's HEALTHCHECK and for scripts. It needs no token.`,
		Example: "  imapgate health\n  imapgate health --config /etc/imapgate.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			body, err := c.Get(cmd.Context(), "/readyz", nil)
			if err != nil {
				return err
			}
			_ = body.Close()
			return printResult(cmd, map[string]string{"state": "ready"}, "ready\n")
		},
	}
	return serverFlags(cmd)
}
