package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin/legacy"
	"imapgate/internal/config"
	"imapgate/internal/sanitize"
	"imapgate/proxy"
)

func newBackends() *cobra.Command {
	cmd := &cobra.Command{
		Use: "backends", Args: cobra.NoArgs,
		Short: "Show the backends of the running gateway, their sessions and protocol violations",
		Long: `Show the backends of the gateway that runs on this machine: the mode of each, its live
sessions, and whether new sessions are multiplexed, as the modes reuse and resume do.

If a backend violates the IMAP protocol for five users within an hour, and for one user in
every hundred sessions there, its new sessions are spliced, for an hour at first. If it
violates the protocol in two sessions of one user, that user's new sessions are spliced for
an hour. The log has the details.

The command asks the gateway through its admin address.`,
		Example: `  imapgate backends
  imapgate backends --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(configFile(cmd))
			if err != nil {
				return err
			}
			list, err := query(cmd.Context(), cfg.Admin, legacy.ListBackends, legacy.None{})
			if err != nil {
				return err
			}
			return printResult(cmd, list, formatBackends(list.Backends))
		},
	}
	operatorFlags(cmd)
	return cmd
}

func formatBackends(backends []proxy.BackendState) string {
	rows := []string{"BACKEND\tMODE\tSESSIONS\tMULTIPLEXED"}
	for _, b := range backends {
		rows = append(rows, fmt.Sprintf("%s\t%s\t%s\t%s", sanitize.Quote(b.Name), sanitize.Quote(string(b.Mode)), formatSessions(b), formatMultiplexed(b)))
	}
	return formatTable(rows)
}

// formatSessions returns "7", or "7 (2 in splice)" if some are not in the backend's
// own mode.
func formatSessions(b proxy.BackendState) string {
	total := 0
	var other []string
	for _, mode := range slices.Sorted(maps.Keys(b.Sessions)) {
		total += b.Sessions[mode]
		if mode != b.Mode {
			other = append(other, fmt.Sprintf("%d in %s", b.Sessions[mode], sanitize.Quote(string(mode))))
		}
	}
	if len(other) == 0 {
		return fmt.Sprint(total)
	}
	return fmt.Sprintf("%d (%s)", total, strings.Join(other, ", "))
}

// formatMultiplexed describes whether new sessions are multiplexed.
func formatMultiplexed(b proxy.BackendState) string {
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
