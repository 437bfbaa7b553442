// Command imapgate is an IMAP proxy: the front door of a mail cluster.
//
// This package knows every room and does nothing itself: it reads the command
// line, loads the configuration, hands each room its part, and turns signals
// into the calls that end or refresh them. What a client, a route or a backend
// is, the rooms know. The process (its limits, its signals, standard input and
// output) is owned here and nowhere else.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

// defaultConfig is where the packaged unit file expects the configuration.
const defaultConfig = "/etc/imapgate.yaml"

// errReported ends a command that has already told the user what is wrong.
var errReported = errors.New("said already")

func main() {
	os.Exit(run(context.Background(), newRoot()))
}

// run executes a command and gives the exit status.
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
		Short: "An IMAP proxy: the front door of a mail cluster",
		Long: `imapgate accepts mail clients, authenticates them, looks up each user's backend
in Redis, logs in there on the user's behalf and relays.

Start with:  imapgate demo`,
		Version:       readBuildInfo().String(),
		SilenceUsage:  true, // a wrong password file is no reason to print all flags
		SilenceErrors: true, // run prints them
	}
	root.SetVersionTemplate("{{.Version}}\n")
	root.AddCommand(newServe(), newCheck(), newDemo(), newRoute(), newBan(), newLimits(), newBackends(), newPasswd(), newAudit(), newVersion())
	return root
}

// refuseArguments refuses what a group of commands does not have: printing help for a
// typing error would look like success to a script.
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

// configArgument has a command take the configuration file as its argument, too. Both
// ways may name one file, and no other.
func configArgument(cmd *cobra.Command, file *string) {
	configFlag(cmd, file)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("one configuration file is enough: %s", cmd.UseLine())
		}
		if len(args) == 0 {
			return nil
		}
		if cmd.Flags().Changed("config") && *file != args[0] {
			return fmt.Errorf("which file, %s or %s? An argument and --config say the same", args[0], *file)
		}
		*file = args[0]
		return nil
	}
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"yaml", "yml"}, cobra.ShellCompDirectiveFilterFileExt)
}
