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
	"unicode"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/identity"
	"imapgate/routing"
)

// routeTime bounds one command.
const routeTime = 10 * time.Second

// routeOptions are the flags that get, set, del and explain share.
type routeOptions struct {
	file   string
	asJSON bool
}

func newRoute() *cobra.Command {
	cmd := &cobra.Command{
		Use: "route", Args: noCommand, RunE: showHelp,
		Short: "See and change where users go",
		Long: `Read and write the records in Redis that say on which backend a user's mail is.
A change decides every running gateway's next logins within a second. Live sessions stay
where they are until they end, in every mode: "Moving a user" in docs/OPERATIONS.md says how
to move a user's mail.

redis-cli does as well; this command also refuses a record that no gateway would follow.`,
	}
	var o routeOptions
	cmd.PersistentFlags().StringVarP(&o.file, "config", "c", defaultConfig, "configuration file")
	cmd.PersistentFlags().BoolVar(&o.asJSON, "json", false, "print JSON")
	_ = cmd.MarkPersistentFlagFilename("config", "yaml", "yml")
	cmd.AddCommand(newRouteGet(&o), newRouteSet(&o), newRouteDel(&o), newRouteExplain(&o), newRouteAcceptEmpty(&o))
	return cmd
}

// oneUser is what get, del and explain take.
func oneUser(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one user name is needed: %s", cmd.UseLine())
	}
	return nil
}

// userAndFields is what set takes.
func userAndFields(cmd *cobra.Command, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("a user name and at least one field are needed: %s", cmd.UseLine())
	}
	return nil
}

func newRouteGet(o *routeOptions) *cobra.Command {
	return &cobra.Command{
		Use: "get USER", Short: "Show a user's own record", Args: oneUser,
		Example: "  imapgate route get alice@example.org",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, args[0], func(ctx context.Context, t *routes) error {
				record, err := t.router.Record(ctx, t.user)
				if err != nil {
					return err
				}
				if o.asJSON {
					return json.NewEncoder(t.out).Encode(map[string]any{"user": t.user.String(), "record": record})
				}
				if record == nil {
					_, err := fmt.Fprintf(t.out, "%s has no record; see: imapgate route explain %[1]s\n", t.user)
					return err
				}
				return table(t.out, record)
			})
		},
	}
}

func newRouteSet(o *routeOptions) *cobra.Command {
	return &cobra.Command{
		Use: "set USER FIELD=VALUE...", Short: "Change fields of a user's own record", Args: userAndFields,
		Long: `Change fields of a user's own record: backend, login, mode, state (active, paused or
blocked) and password (a hash, see imapgate passwd). An empty value removes a field.
Fields that are not named stay as they are.

A record decides where the next login goes, and ends no session. How many live sessions the
gateway on this machine has, and how many of them are elsewhere, is printed.`,
		Example: `  imapgate route set alice@example.org backend=west
  imapgate route set alice@example.org state=paused
  imapgate route set alice@example.org state=`,
		RunE: func(cmd *cobra.Command, args []string) error {
			fields, err := assignments(args[1:])
			if err != nil {
				return err
			}
			return o.run(cmd, args[0], func(ctx context.Context, t *routes) error {
				if err := t.router.SetRecord(ctx, t.user, fields); err != nil {
					return err
				}
				return o.done(ctx, t, "changed")
			})
		},
	}
}

func newRouteDel(o *routeOptions) *cobra.Command {
	return &cobra.Command{
		Use: "del USER", Short: "Remove a user's own record", Args: oneUser,
		Long:    "Remove a user's own record, so that the record of the domain, or the default, decides.",
		Example: "  imapgate route del alice@example.org",
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd, args[0], func(ctx context.Context, t *routes) error {
				removed, err := t.router.DeleteRecord(ctx, t.user)
				if err != nil {
					return err
				}
				if !removed {
					return o.done(ctx, t, "had no record")
				}
				return o.done(ctx, t, "removed")
			})
		},
	}
}

func newRouteAcceptEmpty(o *routeOptions) *cobra.Command {
	return &cobra.Command{
		Use: "accept-empty", Short: "Say that records which are missing from Redis are meant to be", Args: cobra.NoArgs,
		Long: `Say that records which are missing from Redis are meant to be.

When Redis has lost most of the records it was seen to have (FLUSHALL, an empty volume,
another database or prefix), gateways take nobody for unknown: known users are served from
the last good answer, all others get UNAVAILABLE, until the records are back. After this
command every gateway believes Redis again within seconds, and denies users without a
record. Restore the records first, where they are not meant to be gone.`,
		Example: "  imapgate route accept-empty",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(o.file)
			if err != nil {
				return err
			}
			return withRouter(cmd, cfg, func(ctx context.Context, t *routes) error {
				if err := t.router.AcceptEmpty(ctx, operatorName()); err != nil {
					return err
				}
				if o.asJSON {
					return json.NewEncoder(t.out).Encode(map[string]string{"result": "accepted"})
				}
				_, err := fmt.Fprintln(t.out, "accepted: gateways believe within seconds that missing records are meant to be missing")
				return err
			})
		},
	}
}

// operatorName is who runs this command, for the audit log of gateways.
func operatorName() string {
	if u, err := osuser.Current(); err == nil {
		return u.Username
	}
	return "operator"
}

// routes is one open router and the user it is asked about.
type routes struct {
	cfg    *config.Config
	router *routing.Router
	user   identity.User
	out    io.Writer
}

// run opens a router for one call.
func (o *routeOptions) run(cmd *cobra.Command, name string, call func(context.Context, *routes) error) error {
	cfg, err := config.Load(o.file)
	if err != nil {
		return err
	}
	u, err := cfg.Auth.Spelling.Canon(name)
	if err != nil {
		return fmt.Errorf("user %q: %w", name, err)
	}
	return withRouter(cmd, cfg, func(ctx context.Context, t *routes) error {
		t.user = u
		return call(ctx, t)
	})
}

// withRouter opens a router for one call that is about no user.
func withRouter(cmd *cobra.Command, cfg *config.Config, call func(context.Context, *routes) error) error {
	quietRedis(zap.NewNop())
	rdb, err := dialRedisOnce(cfg)
	if err != nil {
		return err
	}
	defer closeRedis(rdb)
	router, err := routing.New(routingConfig(cfg), rdb, routing.Metrics{}, zap.NewNop())
	if err != nil {
		return fmt.Errorf("routing: %w", err)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), routeTime)
	defer cancel()
	return call(ctx, &routes{cfg: cfg, router: router, out: cmd.OutOrStdout()})
}

func closeRedis(rdb redis.UniversalClient) {
	if rdb != nil {
		_ = rdb.Close() // nothing is waiting to be written
	}
}

// done reports what was done, and which live sessions go on as before.
func (o *routeOptions) done(ctx context.Context, t *routes, what string) error {
	p := askPresence(ctx, t, t.router.Explain(ctx, t.user))
	if o.asJSON {
		return json.NewEncoder(t.out).Encode(struct {
			User     string   `json:"user"`
			Result   string   `json:"result"`
			Sessions presence `json:"sessions"`
		}{t.user.String(), what, p})
	}
	if _, err := fmt.Fprintf(t.out, "%s: %s\n", t.user, what); err != nil {
		return err
	}
	return p.print(t.out)
}

// routeFields are the fields of a user's record. Redis may hold others, for
// other programs; here one is a slip of the pen. Constant.
var routeFields = []string{"backend", "login", "mode", "password", "state", "user"}

// assignments reads FIELD=VALUE arguments. Which values are allowed is for
// routing to say.
func assignments(args []string) (map[string]string, error) {
	fields := make(map[string]string, len(args))
	for _, arg := range args {
		name, value, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is not FIELD=VALUE, such as backend=west", arg)
		}
		if !slices.Contains(routeFields, name) {
			return nil, fmt.Errorf("%q is not one of %s", name, strings.Join(routeFields, ", "))
		}
		if _, twice := fields[name]; twice {
			return nil, errors.New(name + " is there twice")
		}
		fields[name] = value
	}
	return fields, nil
}

// table prints fields in two columns. Values are quoted where they could play
// tricks on a terminal: anybody with access to Redis may have written them.
func table(to io.Writer, fields map[string]string) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		fmt.Fprintf(w, "%s\t%s\n", plain(name), plain(fields[name]))
	}
	return w.Flush()
}

// plain is s when it is visible ASCII and letters of other scripts, and quoted
// otherwise.
func plain(s string) string {
	hides := func(r rune) bool {
		return r < ' ' || r > '~' && !unicode.In(r, unicode.L, unicode.Mn, unicode.Mc, unicode.Nd) || r == utf8.RuneError
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, hides) {
		return fmt.Sprintf("%+q", s)
	}
	return s
}
