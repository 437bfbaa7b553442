package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"imapgate/internal/admin"
	"imapgate/internal/admin/api"
	"imapgate/internal/admin/client"
	"imapgate/internal/admin/legacy"
	"imapgate/internal/config"
	"imapgate/internal/duration"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/sanitize"
)

// errPartial ends a command that some gateway has not carried out; it is already reported.
var errPartial = errors.New("some gateway did not do it")

// Variables of the environment that replace flags.
const (
	serverVariable = "IMAPGATE_SERVER"
	tokenVariable  = "IMAPGATE_TOKEN"
)

// maxTokenFile bounds a file with a token, in bytes.
const maxTokenFile = 4096

// serverFlags adds the flags of commands that talk to a running gateway.
func serverFlags(cmd *cobra.Command) *cobra.Command {
	flags := cmd.PersistentFlags()
	flags.String("server", "", "the gateway: unix:///run/imapgate/admin.sock or https://host:9143; or set "+serverVariable)
	flags.String("token-file", "", "file with the token for --server; or set "+tokenVariable)
	flags.String("ca", "", "file with the CAs of an https server, instead of the system's")
	operatorFlags(cmd)
	return cmd
}

// dialGateway returns a client of the gateway that the flags, the environment or the
// configuration name.
func dialGateway(cmd *cobra.Command) (*client.Client, error) {
	o := client.Options{Server: os.Getenv(serverVariable), Token: identity.NewSecret(os.Getenv(tokenVariable))}
	flags := cmd.Flags()
	if server, _ := flags.GetString("server"); server != "" {
		o.Server = server
	}
	o.CA, _ = flags.GetString("ca")
	if file, _ := flags.GetString("token-file"); file != "" {
		text, err := readTokenFile(file)
		if err != nil {
			return nil, err
		}
		o.Token = identity.NewSecret(text)
	}
	if o.Server == "" {
		if err := useLocalGateway(cmd, &o); err != nil {
			return nil, err
		}
	}
	return client.New(o)
}

// useLocalGateway fills in the gateway of this machine: that of the configuration if it is
// named, else the one at the default socket, else that of the default configuration.
func useLocalGateway(cmd *cobra.Command, o *client.Options) error {
	_, err := os.Stat(strings.TrimPrefix(client.DefaultServer, "unix://"))
	o.Server = client.DefaultServer
	isNamed := cmd.Flags().Changed("config")
	if err == nil && !isNamed {
		return nil
	}
	cfg, err := config.Load(configFile(cmd))
	if err != nil {
		if isNamed {
			return err
		}
		return nil // connecting reports that no gateway is there
	}
	if !useSettings(cfg.Admin, o) {
		return errNoAdmin
	}
	return nil
}

// useSettings fills in the gateway with these settings. It returns false if operators cannot
// reach it.
func useSettings(s admin.Settings, o *client.Options) bool {
	if _, err := os.Stat(s.Socket); s.Socket != "" && err == nil {
		o.Server = "unix://" + s.Socket
		return true
	}
	if s.Address == "" {
		o.Server = "unix://" + s.Socket
		return s.Socket != ""
	}
	o.Server = "http://" + dialableAddress(s.Address)
	if s.TLS != nil {
		o.Server = "https://" + dialableAddress(s.Address)
	}
	if o.Token.IsZero() {
		o.Token = s.Token
	}
	return true
}

func readTokenFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxTokenFile))
	return strings.TrimSpace(string(text)), err
}

// askGateway executes an operation at the gateway of a command.
func askGateway[Input, Output any](cmd *cobra.Command, o api.Operation[Input, Output], input *Input) (output Output, err error) {
	c, err := dialGateway(cmd)
	if err != nil {
		return output, err
	}
	return client.Do(cmd.Context(), c, o, input)
}

// reportMissing reports gateways that have not answered, on standard error. It returns
// errPartial if there are any.
func reportMissing(cmd *cobra.Command, g api.Gateways) error {
	for _, refused := range g.Refused {
		fmt.Fprintln(cmd.ErrOrStderr(), "imapgate:", sanitize.Line(refused, maxTokenFile))
	}
	for _, name := range g.Missing {
		fmt.Fprintf(cmd.ErrOrStderr(), "imapgate: gateway %s did not answer\n", sanitize.Quote(name))
	}
	if g.IsPartial() {
		return errPartial
	}
	return nil
}

// describeScope returns "on 2 of 3 gateways; gw-c did not answer within 2 s".
func describeScope(g api.Gateways) string {
	text := fmt.Sprintf("on %d of %s", g.Answered-len(g.Refused), pluralize(g.Asked, "gateway"))
	if len(g.Missing) > 0 {
		text += "; " + strings.Join(g.Missing, ", ") + " did not answer within 2 s"
	}
	return text
}

// durationFlag adds a flag whose value may have days and weeks.
func durationFlag(flags *pflag.FlagSet, d *time.Duration, name, usage string) {
	flags.Var((*legacy.Duration)(d), name, usage)
}

// screen is what a command prints; watched, it is printed again and again.
type screen func(ctx context.Context) (result any, text string, err error)

// watchFlag adds the flag --watch.
func watchFlag(cmd *cobra.Command) {
	cmd.Flags().String("watch", "", "print it again every 2s, or as often as given, until interrupted")
	cmd.Flags().Lookup("watch").NoOptDefVal = "2s"
}

// show prints a screen once, or with --watch until the command is interrupted.
func show(cmd *cobra.Command, s screen) error {
	every, _ := cmd.Flags().GetString("watch")
	if every == "" {
		return showOnce(cmd, s)
	}
	interval, err := duration.Parse(every)
	if err != nil || interval < 100*time.Millisecond {
		return fmt.Errorf("%w: --watch=%s: expected a duration of at least 100ms", errUsage, sanitize.Quote(every))
	}
	ctx, stop := interruptible(cmd.Context())
	defer stop()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		result, text, err := s(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !errors.Is(err, errPartial):
			text, result = "imapgate: "+err.Error()+"\n", map[string]string{"error": err.Error()}
		}
		if isTerminal(cmd.OutOrStdout()) && !wantsJSON(cmd) {
			text = "\x1b[H\x1b[2J" + text
		}
		if err := printResult(cmd, result, text); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func showOnce(cmd *cobra.Command, s screen) error {
	result, text, err := s(cmd.Context())
	if err != nil && !errors.Is(err, errPartial) {
		return err
	}
	return errors.Join(printResult(cmd, result, text), err)
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// screenWidth returns the width of the terminal, and 0 without one: nothing is cut then.
func screenWidth(cmd *cobra.Command) int {
	f, ok := cmd.OutOrStdout().(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

func isNotFound(err error) bool {
	var refused *client.Error
	return errors.As(err, &refused) && refused.Status == http.StatusNotFound
}

// interruptible returns a context that ends with SIGINT or SIGTERM.
func interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
}

// completeWords completes the values of flags that name backends, addresses and gateways: never
// users.
func completeWords(cmd *cobra.Command) {
	for flag, list := range map[string]func(*cobra.Command) []string{"backend": backendNames, "address": addressNames, "gateway": gatewayNames} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag, completeFrom(list)) // the flag was just made
		}
	}
	for flag, words := range map[string][]string{"mode": event.Values("Mode"), "state": event.Values("Activity"), "survives": event.Values("Survival")} {
		if cmd.Flags().Lookup(flag) != nil {
			_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
		}
	}
}

func completeFrom(list func(*cobra.Command) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return list(cmd), cobra.ShellCompDirectiveNoFileComp
	}
}

func backendNames(cmd *cobra.Command) (names []string) {
	list, _ := askGateway(cmd, api.ListBackends, &api.Scope{Scope: "gateway"}) // no completion without a gateway
	for _, b := range list.Backends {
		names = append(names, b.Name)
	}
	return names
}

func addressNames(cmd *cobra.Command) (names []string) {
	list, _ := askGateway(cmd, api.ListBackends, &api.Scope{Scope: "gateway"})
	for _, b := range list.Backends {
		for _, a := range b.Addresses {
			names = append(names, a.Address)
		}
	}
	return names
}

func gatewayNames(cmd *cobra.Command) (names []string) {
	list, _ := askGateway(cmd, api.ListGateways, &api.None{})
	for _, g := range list.Gateways {
		names = append(names, g.Name)
	}
	return names
}
