package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	osuser "os/user"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/config"
	"imapgate/internal/gateway"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
	"imapgate/routing"
)

// commandTimeout bounds one command.
const commandTimeout = 10 * time.Second

func newRoute() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "route",
		Short: "Show and change user routing",
		Long: `Read and write the route records in Redis, which name the backend of a user's mail: the
user's own record, that of a domain (--domain) for its users without one, and the default
(--default) for all others. A change applies to the next logins at every running gateway
within a second. Live sessions stay on their backend until they end, in every mode;
docs/moving-users.md describes how to move a user's mail.

redis-cli works as well; this command also refuses records that gateways would ignore.`,
	}
	operatorFlags(cmd)
	return withSubcommands(cmd, newRouteList(), newRouteGet(), newRouteSet(), newRouteDel(), newRouteExplain(), newRouteImport(), newRouteExport(), newRouteAcceptEmpty())
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

func newRouteGet() *cobra.Command {
	return targetFlags(&cobra.Command{
		Use: "get USER | --domain DOMAIN | --default", Short: "Show the record of a user, a domain or all others", Args: requireRecord,
		Example: `  imapgate route get alice@example.org
  imapgate route get --domain example.org
  imapgate route get --default`,
		RunE: withTarget(func(ctx context.Context, t *routeCommand) error {
			record, err := t.router.Record(ctx, t.target)
			if err != nil {
				return err
			}
			text := formatFields(record)
			if record == nil {
				text = fmt.Sprintf("%s has no record", t.target)
				if !t.user.IsZero() {
					text += "; see: imapgate route explain " + t.target.String()
				}
				text += "\n"
			}
			return printResult(t.cmd, struct {
				recordName
				Record map[string]string `json:"record"`
			}{recordNameOf(t.target), record}, text)
		}),
	})
}

func newRouteSet() *cobra.Command {
	return targetFlags(&cobra.Command{
		Use: "set {USER | --domain DOMAIN | --default} FIELD=VALUE...", Short: "Change fields of a record", Args: requireRecordAndFields,
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
			if !isGroupRecord(cmd) {
				fields = args[1:]
			}
			change, err := parseAssignments(fields)
			if err != nil {
				return err
			}
			return withTarget(func(ctx context.Context, t *routeCommand) error {
				if err := t.router.SetRecord(ctx, t.target, change); err != nil {
					return err
				}
				return t.printChange(ctx, "changed")
			})(cmd, args)
		},
	})
}

func newRouteDel() *cobra.Command {
	return targetFlags(&cobra.Command{
		Use: "del USER | --domain DOMAIN | --default", Short: "Remove the record of a user, a domain or all others", Args: requireRecord,
		Long: `Remove a record. The next one then applies: after a user's own that of the domain, and
then the default. Users without any record are refused.`,
		Example: `  imapgate route del alice@example.org
  imapgate route del --domain example.org`,
		RunE: withTarget(func(ctx context.Context, t *routeCommand) error {
			removed, err := t.router.DeleteRecord(ctx, t.target)
			if err != nil {
				return err
			}
			if !removed {
				return t.printChange(ctx, "had no record")
			}
			return t.printChange(ctx, "removed")
		}),
	})
}

func newRouteAcceptEmpty() *cobra.Command {
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
			cfg, err := config.Load(configFile(cmd))
			if err != nil {
				return err
			}
			return withRouter(&routeCommand{cmd: cmd, cfg: cfg}, func(ctx context.Context, t *routeCommand) error {
				if err := t.router.AcceptEmpty(ctx, operatorName()); err != nil {
					return err
				}
				return printResult(cmd, map[string]string{"result": "accepted"},
					"accepted: within seconds gateways trust Redis again and refuse users without a record\n")
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

// routeCommand is a command with an open router and the record that it is about.
type routeCommand struct {
	cmd    *cobra.Command
	cfg    *config.Config
	router *routing.Router
	target routing.Target
	user   identity.User // of the target; zero if it is not a user's
}

// withTarget returns the RunE that opens a router and calls call with the record that the
// arguments name.
func withTarget(call func(context.Context, *routeCommand) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		cfg, err := config.Load(configFile(cmd))
		if err != nil {
			return err
		}
		target, err := parseTarget(cmd, cfg, args)
		if err != nil {
			return err
		}
		return withRouter(&routeCommand{cmd: cmd, cfg: cfg, target: target, user: target.User()}, call)
	}
}

// withRouter opens a router for one call.
func withRouter(t *routeCommand, call func(context.Context, *routeCommand) error) error {
	setRedisLogger(zap.NewNop())
	store, err := gateway.OpenStore(t.cfg)
	if err != nil {
		return err
	}
	defer store.Close()
	t.router = store.Routes
	ctx, cancel := context.WithTimeout(t.cmd.Context(), commandTimeout)
	defer cancel()
	return call(ctx, t)
}

// printChange prints the result of a change and the live sessions, which continue
// unchanged.
func (t *routeCommand) printChange(ctx context.Context, result string) error {
	if t.user.IsZero() {
		return printResult(t.cmd, struct {
			recordName
			Result string `json:"result"`
		}{recordNameOf(t.target), result}, fmt.Sprintf("%s: %s\nlive sessions stay on their backend until they end\n", t.target, result))
	}
	p := fetchSessionReport(ctx, t, t.router.Explain(ctx, t.user))
	hint := ""
	if t.user.Domain() == "" {
		hint = fmt.Sprintf("%s has no domain and auth.default_domain is empty: %[1]s@DOMAIN is another user\n", t.user)
	}
	return printResult(t.cmd, struct {
		User     string        `json:"user"`
		Result   string        `json:"result"`
		Sessions sessionReport `json:"sessions"`
	}{t.user.String(), result, p}, fmt.Sprintf("%s: %s\n%s%s", t.user, result, hint, p.format()))
}

// parseAssignments parses FIELD=VALUE arguments and checks a password. Package routing
// checks the other fields and values: Redis may hold others for other programs, but here
// they are typing errors.
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
	if hash := fields["password"]; hash != "" {
		if err := auth.CheckStoredHash(identity.NewSecret(hash)); err != nil {
			return nil, fmt.Errorf("%w: make its hash with imapgate passwd", err)
		}
	}
	return fields, nil
}

// formatFields returns fields in two columns. Values that could affect a terminal are
// quoted, because any Redis client may have written them.
func formatFields(fields map[string]string) string {
	var rows []string
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		rows = append(rows, sanitize.Quote(name)+"\t"+sanitize.Quote(fields[name]))
	}
	return formatTable(rows)
}

func targetFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().String("domain", "", "the record of a domain, instead of USER")
	cmd.Flags().Bool("default", false, "the record of all others, instead of USER")
	cmd.MarkFlagsMutuallyExclusive("domain", "default")
	return cmd
}

// isGroupRecord reports whether the flags name the record.
func isGroupRecord(cmd *cobra.Command) bool {
	return isDefaultRecord(cmd) || cmd.Flags().Changed("domain")
}

func isDefaultRecord(cmd *cobra.Command) bool {
	isDefault, _ := cmd.Flags().GetBool("default") // false for a command without the flag
	return isDefault
}

func requireRecord(cmd *cobra.Command, args []string) error {
	switch {
	case isGroupRecord(cmd) && len(args) > 0:
		return fmt.Errorf("only one of a user name, --domain and --default is allowed: %s", cmd.UseLine())
	case !isGroupRecord(cmd) && len(args) != 1:
		return fmt.Errorf("one user name is needed: %s", cmd.UseLine())
	}
	return nil
}

func requireRecordAndFields(cmd *cobra.Command, args []string) error {
	switch {
	case isGroupRecord(cmd) && len(args) == 0:
		return fmt.Errorf("at least one field is needed: %s", cmd.UseLine())
	case !isGroupRecord(cmd) && len(args) < 2:
		return fmt.Errorf("a user name and at least one field are needed: %s", cmd.UseLine())
	}
	return nil
}

// parseTarget returns the record that the flags or the first argument name.
func parseTarget(cmd *cobra.Command, cfg *config.Config, args []string) (routing.Target, error) {
	switch {
	case isDefaultRecord(cmd):
		return routing.ForDefault(), nil
	case isGroupRecord(cmd):
		name, _ := cmd.Flags().GetString("domain") // the command has the flag
		domain, err := cfg.Auth.NameRules.CanonicalizeDomain(name)
		if err != nil {
			return routing.Target{}, fmt.Errorf("domain %q: %w", name, err)
		}
		return routing.ForDomain(domain), nil
	}
	name := args[0]
	if err := checkNotReserved(name, cfg.Auth.DefaultDomain); err != nil {
		return routing.Target{}, err
	}
	u, err := cfg.Auth.NameRules.Canonicalize(name)
	if err != nil {
		return routing.Target{}, fmt.Errorf("user %q: %w", name, err)
	}
	return routing.ForUser(u), nil
}

// checkNotReserved refuses names that operators use for other records than a user's.
// A real account with such a name can be given with its domain.
func checkNotReserved(name, defaultDomain string) error {
	switch domain, isDomain := strings.CutPrefix(name, "@"); {
	case strings.EqualFold(name, "default"):
		return errors.New(`"default" is not read as a user: --default is the record of all others; for a user of that name, write default@DOMAIN`)
	case isDomain && domain != "":
		return fmt.Errorf("%q is not a user: --domain %s is the record of a domain", name, sanitize.Quote(domain))
	case defaultDomain != "" && strings.EqualFold(name, defaultDomain):
		return fmt.Errorf("%q is not read as a user: --domain %[2]s is the record of the domain; for a user of that name, write %[2]s@%[2]s", name, defaultDomain)
	}
	return nil
}

// recordName is the JSON form of a record's name.
type recordName struct {
	User    string `json:"user,omitempty"`
	Domain  string `json:"domain,omitempty"`
	Default bool   `json:"default,omitempty"`
}

func recordNameOf(t routing.Target) recordName {
	switch {
	case !t.User().IsZero():
		return recordName{User: t.String()}
	case t == routing.ForDefault():
		return recordName{Default: true}
	}
	return recordName{Domain: t.String()}
}
