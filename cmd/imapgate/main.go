// Command imapgate is an IMAP proxy, the front end of a mail cluster.
//
// This package connects the others: it reads the command line, loads the
// configuration, passes each package its settings, and turns signals into calls.
// It owns the process: its limits, signals, standard input and output.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// defaultConfig is the path that the packaged systemd unit uses.
const defaultConfig = "/etc/imapgate.yaml"

// errReported ends a command that has already printed its error.
var errReported = errors.New("already reported")

func main() {
	os.Exit(run(context.Background(), newRoot()))
}

// run executes a command and returns the exit status.
func run(ctx context.Context, root *cobra.Command) int {
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case !errors.Is(err, errReported):
		fmt.Fprintln(root.ErrOrStderr(), "imapgate:", err)
	}
	return 1
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
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(newServe(), newCheck(), newDemo(), newRoute(), newBan(), newLimits(), newBackends(), newPasswd(), newAudit(), newVersion())
	return root
}

// refuseArguments refuses an unknown subcommand: printing help for a typing error
// would look like success to a script.
func refuseArguments(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("unknown command %+q for %q: see %s --help", args[0], cmd.CommandPath(), cmd.CommandPath())
	}
	return nil
}

func showHelp(cmd *cobra.Command, _ []string) error { return cmd.Help() }

// configFlag adds --config to a command.
func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", defaultConfig, "configuration file")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // the flag was just made
}

// configArgument lets a command also take the configuration file as its argument. If
// both are given, they must name the same file.
func configArgument(cmd *cobra.Command, file *string) {
	configFlag(cmd, file)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("only one configuration file is allowed: %s", cmd.UseLine())
		}
		if len(args) == 0 {
			return nil
		}
		if cmd.Flags().Changed("config") && *file != args[0] {
			return fmt.Errorf("the argument and --config name different files: %s and %s", args[0], *file)
		}
		*file = args[0]
		return nil
	}
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt)
}
