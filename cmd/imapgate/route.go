package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	osuser "os/user"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/gateway"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
	"imapgate/routing"
)

// commandTimeout bounds one command.
const commandTimeout = 10 * time.Second

// routeOptions are the flags that get, set, del and explain share.
type routeOptions struct {
	operatorOptions

	// Of get, set and del: the record, if it is not a user's.
	domain    string
	isDefault bool
}

func newRoute() *cobra.Command {
	cmd := &cobra.Command{
		Use: "route", Args: refuseArguments, RunE: showHelp,
		Short: "Show and change user routing",
		Long: `Read and write the route records in Redis, which name the backend of a user's mail: the
user's own record, that of a domain (--domain) for its users without one, and the default
(--default) for all others. A change applies to the next logins at every running gateway
within a second. Live sessions stay on their backend until they end, in every mode;
docs/moving-users.md describes how to move a user's mail.

redis-cli works as well; this command also refuses records that gateways would ignore.`,
	}
	var o routeOptions
	o.flags(cmd)
	cmd.AddCommand(newRouteGet(&o), newRouteSet(&o), newRouteDel(&o), newRouteExplain(&o), newRouteAcceptEmpty(&o))
	return cmd
}

// requireOne requires one argument, which a phrase such as "user name" describes.
func requireOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("one %s is needed: %s", what, cmd.UseLine())
		}
		return nil
	}
}

func newRouteGet(o *routeOptions) *cobra.Command {
	return o.targetFlags(&cobra.Command{
		Use: "get USER | --domain DOMAIN | --default", Short: "Show the record of a user, a domain or all others", Args: o.requireRecord,
		Example: `  imapgate route get alice@example.org
  imapgate route get --domain example.org
  imapgate route get --default`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.runWithTarget(cmd, args, func(ctx context.Context, t *routeCommand) error {
				record, err := t.router.Record(ctx, t.target)
				if err != nil {
					return err
				}
				if o.asJSON {
					return json.NewEncoder(t.out).Encode(struct {
						recordName
						Record map[string]string `json:"record"`
					}{recordNameOf(t.target), record})
				}
				if record == nil && t.target.User().IsZero() {
					_, err := fmt.Fprintf(t.out, "%s has no record\n", t.target)
					return err
				}
				if record == nil {
					_, err := fmt.Fprintf(t.out, "%s has no record; see: imapgate route explain %[1]s\n", t.target)
					return err
				}
				return printFields(t.out, record)
			})
		},
	})
}

func newRouteSet(o *routeOptions) *cobra.Command {
	return o.targetFlags(&cobra.Command{
		Use: "set {USER | --domain DOMAIN | --default} FIELD=VALUE...", Short: "Change fields of a record", Args: o.requireRecordAndFields,
		Long: `Change fields of a record. A user's record has backend, login, mode, state (active, paused
or blocked) and password (a hash, see imapgate passwd); a domain's has backend, mode and
state; the default has backend and mode. An empty value removes a field. Other fields do not
change. Either all changes are made or, with an error, none.

A record applies to the next login and ends no session. The command prints how many live
sessions of the user the gateway on this machine has, and how many of them are elsewhere: on
another backend, or there with another login name.`,
		Example: `  imapgate route set alice@example.org backend=west
  imapgate route set alice@example.org state=paused
  imapgate route set alice@example.org state=
  imapgate route set --domain example.org backend=west
  imapgate route set --default backend=east`,
		RunE: func(cmd *cobra.Command, args []string) error {
			fields := args
			if !o.isGroupRecord(cmd) {
				fields = args[1:]
			}
			change, err := parseAssignments(fields)
			if err != nil {
				return err
			}
			return o.runWithTarget(cmd, args, func(ctx context.Context, t *routeCommand) error {
				if err := t.router.SetRecord(ctx, t.target, change); err != nil {
					return err
				}
				return o.printResult(ctx, t, "changed")
			})
		},
	})
}

func newRouteDel(o *routeOptions) *cobra.Command {
	return o.targetFlags(&cobra.Command{
		Use: "del USER | --domain DOMAIN | --default", Short: "Remove the record of a user, a domain or all others", Args: o.requireRecord,
		Long: `Remove a record. The next one then applies: after a user's own that of the domain, and
then the default. Users without any record are refused.`,
		Example: `  imapgate route del alice@example.org
  imapgate route del --domain example.org`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.runWithTarget(cmd, args, func(ctx context.Context, t *routeCommand) error {
				removed, err := t.router.DeleteRecord(ctx, t.target)
				if err != nil {
					return err
				}
				if !removed {
					return o.printResult(ctx, t, "had no record")
				}
				return o.printResult(ctx, t, "removed")
			})
		},
	})
}

func newRouteAcceptEmpty(o *routeOptions) *cobra.Command {
	return &cobra.Command{
		Use: "accept-empty", Short: "Confirm that records missing from Redis were removed on purpose", Args: cobra.NoArgs,
		Long: `Confirm that records missing from Redis were removed on purpose.

If Redis has lost most of the known records (FLUSHALL, an empty volume, another database or
prefix), gateways treat no user as unknown: known users are served from the last good answer,
all others get UNAVAILABLE, until the records are back. After this command every gateway
trusts Redis again within seconds, and refuses users without a record. If the records were
not removed on purpose, restore them instead.`,
		Example: "  imapgate route accept-empty",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(o.file)
			if err != nil {
				return err
			}
			return withRouter(cmd, cfg, func(ctx context.Context, t *routeCommand) error {
				if err := t.router.AcceptEmpty(ctx, operatorName()); err != nil {
					return err
				}
				if o.asJSON {
					return json.NewEncoder(t.out).Encode(map[string]string{"result": "accepted"})
				}
				_, err := fmt.Fprintln(t.out, "accepted: within seconds gateways trust Redis again and refuse users without a record")
				return err
			})
		},
	}
}

// operatorName returns the name of the user who runs this command, for the gateways'
// audit logs.
func operatorName() string {
	if u, err := osuser.Current(); err == nil {
		return u.Username
	}
	return "operator"
}

// routeCommand is an open router and the record of the command.
type routeCommand struct {
	cfg    *config.Config
	router *routing.Router
	target routing.Target
	user   identity.User // of the target; zero if it is not a user's
	out    io.Writer
}

// runWithTarget opens a router and calls call with the record that the arguments
// name.
func (o *routeOptions) runWithTarget(cmd *cobra.Command, args []string, call func(context.Context, *routeCommand) error) error {
	cfg, err := config.Load(o.file)
	if err != nil {
		return err
	}
	target, err := o.parseTarget(cmd, cfg, args)
	if err != nil {
		return err
	}
	return withRouter(cmd, cfg, func(ctx context.Context, t *routeCommand) error {
		t.target, t.user = target, target.User()
		return call(ctx, t)
	})
}

// withRouter opens a router for one call without a record.
func withRouter(cmd *cobra.Command, cfg *config.Config, call func(context.Context, *routeCommand) error) error {
	setRedisLogger(zap.NewNop())
	store, err := gateway.OpenStore(cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), commandTimeout)
	defer cancel()
	return call(ctx, &routeCommand{cfg: cfg, router: store.Routes, out: cmd.OutOrStdout()})
}

// printResult prints the result and the live sessions, which continue unchanged.
func (o *routeOptions) printResult(ctx context.Context, t *routeCommand, result string) error {
	if t.user.IsZero() {
		if o.asJSON {
			return json.NewEncoder(t.out).Encode(struct {
				recordName
				Result string `json:"result"`
			}{recordNameOf(t.target), result})
		}
		_, err := fmt.Fprintf(t.out, "%s: %s\nlive sessions stay on their backend until they end\n", t.target, result)
		return err
	}
	p := fetchSessionReport(ctx, t, t.router.Explain(ctx, t.user))
	if o.asJSON {
		return json.NewEncoder(t.out).Encode(struct {
			User     string        `json:"user"`
			Result   string        `json:"result"`
			Sessions sessionReport `json:"sessions"`
		}{t.user.String(), result, p})
	}
	if _, err := fmt.Fprintf(t.out, "%s: %s\n", t.user, result); err != nil {
		return err
	}
	return p.print(t.out)
}

// parseAssignments parses FIELD=VALUE arguments. Package routing checks the fields
// and values: Redis may hold others for other programs, but here they are typing
// errors.
func parseAssignments(args []string) (map[string]string, error) {
	fields := make(map[string]string, len(args))
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not FIELD=VALUE, such as backend=west", arg)
		}
		if _, duplicate := fields[name]; duplicate {
			return nil, errors.New("duplicate field " + name)
		}
		fields[name] = value
	}
	return fields, nil
}

// printFields prints fields in two columns. Values that could affect a terminal are
// quoted, because any Redis client may have written them.
func printFields(to io.Writer, fields map[string]string) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(w, "%s\t%s\n", sanitize.Quote(name), sanitize.Quote(fields[name]))
	}
	return w.Flush()
}
