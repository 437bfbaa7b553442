// Command imapgate is an IMAP proxy, the front end of a mail cluster.
//
// This package connects the others: it reads the command line, loads the
// configuration, passes each package its settings, and turns signals into calls.
// It owns the process: its limits, signals, standard input and output.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// defaultConfig is the path that the packaged systemd unit uses.
const defaultConfig = "/etc/imapgate.yaml"

var (
	// errReported ends a command that has already printed its error.
	errReported = errors.New("already reported")
	// errUsage is a mistake in the command line.
	errUsage = errors.New("usage")
)

// Exit statuses.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitPartial = 3 // some gateway did not answer, or refused
)

func main() {
	os.Exit(run(context.Background(), newRoot()))
}

func run(ctx context.Context, root *cobra.Command) int {
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errPartial):
		return exitPartial
	case errors.Is(err, errReported):
		return exitFailed
	}
	text, isUsage := strings.CutPrefix(err.Error(), errUsage.Error()+": ")
	fmt.Fprintln(root.ErrOrStderr(), "imapgate:", text)
	if isUsage || strings.HasPrefix(text, "unknown command") {
		return exitUsage
	}
	return exitFailed
}

// withUsageErrors makes mistakes in the arguments of a command and its subcommands errUsage.
func withUsageErrors(cmd *cobra.Command) *cobra.Command {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		withUsageErrors(sub)
	}
	return cmd
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "imapgate",
		Short: "An IMAP proxy, the front end of a mail cluster",
		Long: `imapgate accepts mail clients, authenticates them, looks up each user's backend
in Redis, logs in there on the user's behalf and relays.

Start with:  imapgate demo`,
		Version:       readBuildInfo().String(),
		SilenceUsage:  true, // most errors are not about flags
		SilenceErrors: true, // run prints them
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w: see %s --help", errUsage, err, cmd.CommandPath())
	})
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddGroup(&cobra.Group{ID: "gateway", Title: "The gateway:"}, &cobra.Group{ID: "operate", Title: "Running gateways:"}, &cobra.Group{ID: "users", Title: "Users and limits:"})
	addGroup(root, "gateway", newServe(), newCheck(), newDemo(), newPasswd(), newToken(), newVersion())
	addGroup(root, "operate", newStatus(), newTop(), newSessions(), newKick(), newBackends(), newGateways(), newReload(), newDrain(), newEvents(), newHealth())
	addGroup(root, "users", newUsers(), newRoute(), newBan(), newLimits(), newAudit())
	return withUsageErrors(root)
}

func addGroup(root *cobra.Command, group string, commands ...*cobra.Command) {
	for _, cmd := range commands {
		cmd.GroupID = group
		root.AddCommand(cmd)
	}
}

// withSubcommands adds subcommands to a command that only shows its help. It refuses an
// unknown one: printing help for a typing error would look like success to a script.
func withSubcommands(cmd *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(subcommands...)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %+q for %q: see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
		}
		return nil
	}
	return cmd
}

func configFlag(flags *pflag.FlagSet) {
	flags.StringP("config", "c", defaultConfig, "configuration file")
	_ = cobra.MarkFlagFilename(flags, "config", "yaml", "yml") // the flag was just made
}

// configArgument lets a command also take the configuration file as its argument. If
// both are given, they must name the same file.
func configArgument(cmd *cobra.Command) {
	configFlag(cmd.Flags())
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("only one configuration file is allowed: %s", cmd.UseLine())
		}
		if len(args) == 0 {
			return nil
		}
		if file := configFile(cmd); cmd.Flags().Changed("config") && file != args[0] {
			return fmt.Errorf("the argument and --config name different files: %s and %s", args[0], file)
		}
		return cmd.Flags().Set("config", args[0])
	}
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt)
}

func configFile(cmd *cobra.Command) string {
	file, _ := cmd.Flags().GetString("config") // the command has the flag
	return file
}

// operatorFlags adds the flags of commands that query or change a running gateway.
func operatorFlags(cmd *cobra.Command) {
	configFlag(cmd.PersistentFlags())
	jsonFlag(cmd.PersistentFlags())
}

func jsonFlag(flags *pflag.FlagSet) { flags.Bool("json", false, "print JSON") }

func wantsJSON(cmd *cobra.Command) bool {
	asJSON, _ := cmd.Flags().GetBool("json") // the command has the flag
	return asJSON
}

// printResult prints the result of a command: text, or with --json the result itself.
func printResult(cmd *cobra.Command, result any, text string) error {
	if wantsJSON(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
	}
	_, err := io.WriteString(cmd.OutOrStdout(), text)
	return err
}

// pluralize formats a number of things whose plural ends in s: "1 user", "2 users".
func pluralize[N int | int64 | uint64](n N, noun string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(noun, "s"):
		noun += "es"
	default:
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

func isOrAre(n int) string {
	if n == 1 {
		return "is"
	}
	return "are"
}

// version is set by the linker (-X main.version=...), which can only set variables.
// Nothing in the program writes to it.
var version string

// buildInfo identifies the build.
type buildInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	System  string `json:"system"`
}

// readBuildInfo returns the version of the linker, or else that recorded by the Go
// tool.
func readBuildInfo() buildInfo {
	b := buildInfo{Version: version, Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Commit = s.Value
		}
	}
	if b.Version == "" {
		b.Version = info.Main.Version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	return b
}

// String returns the build in one line.
func (b buildInfo) String() string {
	return fmt.Sprintf("imapgate %s (%s, %s)", b.Version, b.Go, b.System)
}

func newVersion() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  imapgate version\n  imapgate version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := readBuildInfo()
			return printResult(cmd, b, b.String()+"\n")
		},
	}
	jsonFlag(cmd.Flags())
	return cmd
}
