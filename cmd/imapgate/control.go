package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/client"
	"imapgate/internal/sanitize"
	"imapgate/internal/sleep"
)

func newReload() *cobra.Command {
	var in api.ReloadRequest
	cmd := &cobra.Command{
		Use: "reload", Short: "Read the configuration and its files again", Args: cobra.NoArgs,
		Long: `Make the gateway read its configuration, certificates and secrets again. The whole file is
checked first: a bad file changes nothing, and the problems are printed as imapgate check
does. Certificates and secrets apply to new connections. A changed configuration is named, and
needs a restart.`,
		Example: "  imapgate reload\n  imapgate reload --dry-run",
		RunE: func(cmd *cobra.Command, _ []string) error {
			answer, err := askGateway(cmd, api.Reload, &in)
			if err != nil {
				return err
			}
			if err := printResult(cmd, answer, formatReload(&answer, in.DryRun)); err != nil {
				return err
			}
			if !answer.Accepted {
				return errReported
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&in.DryRun, "dry-run", false, "only check the file, and list what would change")
	return serverFlags(cmd)
}

func formatReload(a *api.ReloadAnswer, dryRun bool) string {
	var b strings.Builder
	for _, p := range a.Problems {
		position := p.File
		if p.Line > 0 {
			position += fmt.Sprintf(":%d:%d", p.Line, p.Column)
		}
		if p.Key != "" {
			position += ": " + p.Key
		}
		fmt.Fprintf(&b, "%s: %s\n", sanitize.Line(position, 500), sanitize.Line(p.Text, 1000))
	}
	verb := "in force"
	if dryRun {
		verb = "it would be accepted"
	}
	switch {
	case !a.Accepted:
		b.WriteString("refused; nothing has changed\n")
	case len(a.Changed) == 0:
		b.WriteString(verb + "; nothing has changed\n")
	default:
		fmt.Fprintf(&b, "%s; changed: %s\n", verb, sanitize.Line(strings.Join(a.Changed, ", "), 4000))
	}
	return b.String()
}

// drainPoll is how often --wait asks for the progress.
const drainPoll = time.Second

func newDrain() *cobra.Command {
	var in api.DrainRequest
	var wait bool
	cmd := &cobra.Command{
		Use: "drain", Short: "Stop the gateway: end its sessions gradually", Args: cobra.NoArgs,
		Long: `Make the gateway stop as on SIGTERM: it accepts no more clients, ends its sessions one by
one over limits.drain_timeout, and exits. In the modes reuse and resume clients get BYE
between two commands. Start another gateway first, or have a load balancer in front.`,
		Example: "  imapgate drain --dry-run\n  imapgate drain --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			status, err := client.Do(cmd.Context(), c, api.BeginDrain, &in)
			if err != nil {
				return err
			}
			if in.DryRun {
				return printResult(cmd, status, fmt.Sprintf("it would end %s\n", pluralize(status.Forecast.No, "session")))
			}
			if wait {
				return waitForDrain(cmd, c, status)
			}
			return printResult(cmd, status, fmt.Sprintf("draining: %s left; imapgate drain --wait shows the progress\n", pluralize(status.Sessions, "session")))
		},
	}
	cmd.Flags().BoolVar(&in.DryRun, "dry-run", false, "only say what it would do to the sessions")
	cmd.Flags().BoolVar(&wait, "wait", false, "show the progress until the gateway has ended")
	return serverFlags(cmd)
}

// waitForDrain shows the progress of a drain until the gateway no longer answers.
func waitForDrain(cmd *cobra.Command, c *client.Client, status api.DrainStatus) error {
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	for {
		left := max(time.Until(status.Deadline.Time), 0)
		if err := printResult(cmd, status, fmt.Sprintf("draining: %s left, at most %s\n", pluralize(status.Sessions, "session"), formatAge(left))); err != nil {
			return err
		}
		if err := sleep.For(ctx, drainPoll); err != nil {
			return errors.New("interrupted; the gateway goes on draining")
		}
		next, err := client.Do(ctx, c, api.ShowDrain, &api.None{})
		if err != nil {
			return printResult(cmd, api.DrainStatus{State: "ended"}, "the gateway has ended\n")
		}
		status = next
	}
}
