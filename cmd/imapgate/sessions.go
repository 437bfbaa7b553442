package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin/api"
	"imapgate/internal/admin/client"
	"imapgate/internal/sanitize"
)

// maxShownSessions is how many sessions the command sessions shows unless --limit says more.
const maxShownSessions = 100

func newSessions() *cobra.Command {
	var f api.SessionFilter
	var idleOver, olderThan time.Duration
	var onlyHere bool
	cmd := &cobra.Command{
		Use: "sessions [SESSION]", Short: "Show live sessions", Args: cobra.MaximumNArgs(1),
		Long: `Show the live sessions of all gateways, or those that the flags select; or all that is
known about one. SURVIVES is what the loss of its backend would mean to a session: yes, the
client notices nothing; pause, its command waits; no, it ends, and why.`,
		Example: `  imapgate sessions
  imapgate sessions --user 'alice*' --backend east
  imapgate sessions --client 192.0.2.0/24 --idle-over 10m --json
  imapgate sessions K3XQ2M7A-1f`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			f.IdleOver, f.OlderThan = idleOver.Seconds(), olderThan.Seconds()
			if onlyHere {
				f.Scope.Scope = "gateway"
			}
			return show(cmd, func(ctx context.Context) (any, string, error) {
				if len(args) == 1 {
					answer, err := client.Do(ctx, c, api.GetSession, &api.SessionID{Scope: f.Scope, ID: args[0]})
					if err != nil {
						return nil, "", err
					}
					return answer, formatSession(&answer.Session), reportMissing(cmd, answer.Gateways)
				}
				list, err := listSessions(ctx, c, f, f.Limit)
				if err != nil {
					return nil, "", err
				}
				return list, formatSessionList(cmd, &list), reportMissing(cmd, list.Gateways)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.User, "user", "", "of this user; with * for any characters")
	flags.StringVar(&f.Domain, "domain", "", "of users of this domain")
	flags.StringVar(&f.Backend, "backend", "", "at this backend")
	flags.StringVar(&f.Address, "address", "", "at this host:port")
	flags.StringVar(&f.Client, "client", "", "from this IP address or network")
	flags.StringVar(&f.Mode, "mode", "", "in this mode: splice, reuse, resume")
	flags.StringVar(&f.State, "state", "", "in this state: active, idle, waiting, pinned")
	flags.StringVar(&f.Survives, "survives", "", "that would survive a loss: yes, pause, no")
	flags.StringVar(&f.Gateway, "gateway", "", "at this gateway")
	durationFlag(flags, &idleOver, "idle-over", "silent for longer than this")
	durationFlag(flags, &olderThan, "older-than", "logged in for longer than this")
	flags.BoolVar(&onlyHere, "local", false, "ask only the gateway itself, not its fleet")
	flags.IntVar(&f.Limit, "limit", maxShownSessions, "show at most so many")
	completeWords(cmd)
	watchFlag(cmd)
	return serverFlags(cmd)
}

// listSessions returns up to limit sessions, from as many pages as it takes.
func listSessions(ctx context.Context, c *client.Client, f api.SessionFilter, limit int) (all api.SessionList, err error) {
	for {
		f.Limit = min(limit-len(all.Sessions), 1000)
		page, err := client.Do(ctx, c, api.ListSessions, &f)
		if err != nil {
			return all, err
		}
		all.Sessions = append(all.Sessions, page.Sessions...)
		all.Total, all.Next, all.Gateways = page.Total, page.Next, page.Gateways
		if page.Next == "" || len(all.Sessions) >= limit || len(page.Sessions) == 0 {
			return all, nil
		}
		f.Cursor = page.Next
	}
}

func formatSessionList(cmd *cobra.Command, list *api.SessionList) string {
	var rows [][]string
	for _, s := range list.Sessions {
		rows = append(rows, []string{
			s.ID, sanitize.Line(s.User, 320), sanitize.Line(s.Client, 60), sanitize.Line(s.Backend, 63), s.Mode, s.State, orDash(sanitize.Line(s.Mailbox, 200)),
			since(s.Began.Time), since(s.LastActivity.Time), formatBytes(s.BytesIn + s.BytesOut), describeSurvival(&s), sanitize.Line(s.Gateway, 100),
		})
	}
	header := []string{"SESSION", "USER", "CLIENT", "BACKEND", "MODE", "STATE", "MAILBOX", "BEGAN", "IDLE", "BYTES", "SURVIVES", "GATEWAY"}
	width := screenWidth(cmd)
	for _, drop := range []string{"GATEWAY", "MAILBOX", "BYTES", "BEGAN"} { // the least needed first
		if width == 0 || tableWidth(header, rows) <= width {
			break
		}
		header, rows = dropColumn(header, rows, slices.Index(header, drop))
	}
	text := newTable(width, header, rows)
	if n := len(list.Sessions); n < list.Total {
		return text + fmt.Sprintf("%d of %d sessions; --limit shows more\n", n, list.Total)
	}
	return text + pluralize(list.Total, "session") + "\n"
}

// describeSurvival returns "yes", "pause", or "no: spliced".
func describeSurvival(s *api.Session) string {
	if s.Obstacle != "" {
		return s.Survives + ": " + s.Obstacle
	}
	return s.Survives
}

// writeRow writes a row of a name and a value, if there is one.
func writeRow(b *strings.Builder, width int, name, value string) {
	if value != "" {
		fmt.Fprintf(b, "%-*s %s\n", width, name, sanitize.Line(value, 500))
	}
}

func formatSession(s *api.Session) string {
	var b strings.Builder
	row := func(name, value string) { writeRow(&b, 14, name, value) }
	row("session", s.ID)
	row("gateway", s.Gateway)
	row("user", s.User)
	row("client", s.Client)
	row("listener", s.Listener)
	row("tls", s.TLS)
	row("mechanism", s.Mechanism)
	row("client name", strings.TrimSpace(s.ClientName+" "+s.ClientVersion))
	row("backend", s.Backend)
	row("address", s.Address)
	row("login", s.Login)
	row("mode", s.Mode)
	row("state", s.State)
	row("mailbox", s.Mailbox)
	row("commands", fmt.Sprint(s.Commands))
	row("bytes", fmt.Sprintf("%s from the client, %s to it", formatBytes(s.BytesIn), formatBytes(s.BytesOut)))
	row("began", s.Began.Local().Format(time.RFC3339)+", "+since(s.Began.Time)+" ago")
	row("last activity", since(s.LastActivity.Time)+" ago")
	row("survives", describeSurvival(s))
	return b.String()
}

func newKick() *cobra.Command {
	var body api.KickBody
	var block time.Duration
	cmd := &cobra.Command{
		Use: "kick USER|SESSION", Short: "End the sessions of a user, or one session", Args: requireOne("user name or session id"),
		Long: `End sessions at all gateways. In the modes reuse and resume a client gets BYE after its
command in progress, with the reason; in mode splice its connection is closed. A command that
takes longer than 10 seconds is cut off. Clients reconnect by themselves, unless --block
refuses the user for a while: then logins are answered as if the password were wrong.

A name with @ is a user, and so is one for which there is no session with that id.`,
		Example: `  imapgate kick alice@example.org
  imapgate kick alice@example.org --client 192.0.2.0/24 --reason "Please update your program"
  imapgate kick bob@example.org --block 10m
  imapgate kick K3XQ2M7A-1f`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			body.BlockSeconds = block.Seconds()
			answer, err := kick(cmd.Context(), c, args[0], body)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("kick %s: %s ended %s\n", sanitize.Line(args[0], 320), pluralize(answer.Sessions, "session"), describeScope(answer.Gateways))
			if !answer.Blocked.IsZero() {
				text += "logins are refused until " + answer.Blocked.Local().Format(time.RFC3339) + "\n"
			}
			if err := printResult(cmd, answer, text); err != nil || !answer.Gateways.IsPartial() {
				return err
			}
			return errPartial
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&body.Backend, "backend", "", "only sessions at this backend")
	flags.StringVar(&body.Client, "client", "", "only sessions from this IP address or network")
	flags.StringVar(&body.Reason, "reason", "", "what the clients read in their BYE")
	durationFlag(flags, &block, "block", "refuse the user's logins for this long")
	completeWords(cmd)
	return serverFlags(cmd)
}

// kick ends a session by its id, or those of a user.
func kick(ctx context.Context, c *client.Client, name string, body api.KickBody) (api.KickAnswer, error) {
	if !strings.Contains(name, "@") && body == (api.KickBody{Reason: body.Reason}) && strings.Contains(name, "-") {
		answer, err := client.Do(ctx, c, api.EndSession, &api.EndSessionRequest{SessionID: api.SessionID{ID: name}, Reason: body.Reason})
		if err == nil || !isNotFound(err) {
			return answer, err
		}
	}
	return client.Do(ctx, c, api.KickUser, &api.KickRequest{User: name, Body: body})
}

func newUsers() *cobra.Command {
	cmd := &cobra.Command{
		Use: "users USER", Short: "Show a user: route, sessions, limits", Args: requireOne("user name"),
		Long: `Show all that the gateways know about a user: where their mail is and why, their live
sessions everywhere, failed logins, bans and known networks.`,
		Example: "  imapgate users alice@example.org\n  imapgate users alice@example.org --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := dialGateway(cmd)
			if err != nil {
				return err
			}
			return show(cmd, func(ctx context.Context) (any, string, error) {
				u, err := client.Do(ctx, c, api.ShowUser, &api.UserName{User: args[0]})
				if err != nil {
					return nil, "", err
				}
				return u, formatUser(cmd, &u), reportMissing(cmd, u.Gateways)
			})
		},
	}
	watchFlag(cmd)
	return serverFlags(cmd)
}

func formatUser(cmd *cobra.Command, u *api.User) string {
	var b strings.Builder
	row := func(name, value string) { writeRow(&b, 12, name, value) }
	row("user", u.Name)
	if u.Route.Error != "" {
		row("route", "none: "+u.Route.Error)
	} else {
		row("backend", u.Route.Backend)
		row("login", u.Route.Login)
		row("mode", u.Route.Mode)
		row("because of", u.Route.Key+" ("+u.Route.From+", read "+formatAge(time.Duration(u.Route.Age*float64(time.Second)))+" ago)")
	}
	row("address", strings.TrimSpace(u.Address+" "+u.Why))
	for _, f := range u.Limits.Failures {
		row("failures", fmt.Sprintf("%d in the last %s (limit %d)", f.Count, f.Window, f.Limit))
	}
	if !u.Limits.BlockedUntil.IsZero() {
		row("blocked", "until "+u.Limits.BlockedUntil.Local().Format(time.RFC3339))
	}
	if u.Limits.KnownNetworksOnly {
		row("limited to", "known networks, because of failed logins")
	}
	for _, k := range u.Limits.KnownNetworks {
		row("known", k.Network+", last login "+since(k.Last.Time)+" ago")
	}
	b.WriteString("\n" + formatSessionList(cmd, &api.SessionList{Sessions: u.Sessions, Total: len(u.Sessions)}))
	return b.String()
}
