package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/proxy"
)

const backendsPath = "/v1/backends"

// backendList is what a gateway answers about its backends.
type backendList struct {
	Backends []proxy.BackendState `json:"backends"`
}

// listBackends is the admin address's view of all backends.
func (g *gateway) listBackends() any { return backendList{g.proxy.Backends()} }

func newBackends() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "backends", Args: cobra.NoArgs,
		Short: "Show the backends of the running gateway, their sessions, and whether their promises hold",
		Long: `Show the backends of the gateway that runs on this machine: the mode of each, its live
sessions, and whether sessions in the modes reuse and resume are followed.

A backend that has broken the promises of IMAP to five users within an hour, and to one
for every hundred sessions there, has its new sessions spliced, for an hour at first. So
has, for an hour, a user to whom it broke them in two sessions. The log says which.

The gateway is asked through its admin address.`,
		Example: `  imapgate backends
  imapgate backends --json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(file)
			if err != nil {
				return err
			}
			var list backendList
			if err := (adminRequest{http.MethodGet, backendsPath, nil, nil}).do(cmd.Context(), cfg.Admin, &list); err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(list)
			}
			return list.print(cmd.OutOrStdout())
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (s backendList) print(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "BACKEND\tMODE\tSESSIONS\tFOLLOWED") // Flush has the error
	for _, b := range s.Backends {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", quoteUnsafe(b.Name), quoteUnsafe(b.Mode), formatSessions(b), formatFollowed(b))
	}
	return w.Flush()
}

// formatSessions is "7", or "7 (2 in splice)" where they are not all in the backend's own
// mode.
func formatSessions(b proxy.BackendState) string {
	total := 0
	var other []string
	for _, mode := range slices.Sorted(maps.Keys(b.Sessions)) {
		total += b.Sessions[mode]
		if mode != b.Mode {
			other = append(other, fmt.Sprintf("%d in %s", b.Sessions[mode], quoteUnsafe(mode)))
		}
	}
	if len(other) == 0 {
		return fmt.Sprint(total)
	}
	return fmt.Sprintf("%d (%s)", total, strings.Join(other, ", "))
}

// formatFollowed says whether commands of new sessions are read.
func formatFollowed(b proxy.BackendState) string {
	users := pluralize(b.AffectedUsers, "user")
	switch {
	case b.Spliced:
		return "no, spliced until " + b.SplicedUntil.Format(time.RFC3339) + ": it broke promises of IMAP"
	case b.SplicedUsers > 0 && b.SplicedUsers == b.AffectedUsers:
		return fmt.Sprintf("yes, but for the %s to whom it broke promises of IMAP in the last hour", users)
	case b.SplicedUsers > 0:
		return fmt.Sprintf("yes, but for %d of the %s to whom it broke promises of IMAP in the last hour", b.SplicedUsers, users)
	case b.AffectedUsers > 0:
		return fmt.Sprintf("yes; it broke promises of IMAP to %s in the last hour", users)
	case b.Mode == "splice":
		return "no"
	}
	return "yes"
}
