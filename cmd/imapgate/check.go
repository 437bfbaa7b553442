package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/internal/gateway"
)

// problem is one problem of a configuration or of a file it names.
type problem struct {
	File string `json:"file"`
	config.Problem
}

func (p problem) String() string { return p.Format(p.File) }

func newCheck() *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Validate the configuration and the files it names",
		Long: `Read the configuration as serve does, open the certificates, keys, CA files and the
passwd-file it names, check whether the audit log could be written, and print every problem
with file, line and column. It opens no connection and writes nothing.

The exit status is 1 if serve would not start. Warnings leave it 0: serve starts with a
certificate that has expired, that is not valid yet, or whose chain lacks its intermediate,
but clients may refuse it.

root can read files that the gateway's user cannot. --user checks with that user's rights.`,
		Example: "  imapgate check /etc/imapgate.yaml\n  imapgate check --config new.yaml --json\n  sudo imapgate check --user imapgw",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := dropToUser(user); err != nil {
				return err
			}
			file := configFile(cmd)
			problems, warnings := checkConfig(file)
			if user == "" {
				warnings = append(warnings, warnUserMismatch("/")...)
			}
			if wantsJSON(cmd) {
				if err := printJSON(cmd.OutOrStdout(), problems, warnings); err != nil {
					return err
				}
			} else {
				for _, f := range problems {
					fmt.Fprintln(cmd.ErrOrStderr(), f)
				}
				for _, w := range warnings {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+w.String())
				}
			}
			if len(problems) > 0 {
				return errReported
			}
			if !wantsJSON(cmd) {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", file)
			}
			return nil
		},
	}
	configArgument(cmd)
	jsonFlag(cmd.Flags())
	cmd.Flags().StringVar(&user, "user", "", "check with the rights of this user, the service's User=; only for root")
	return cmd
}

func printJSON(to io.Writer, problems, warnings []problem) error {
	texts := make([]string, len(warnings))
	for i, w := range warnings {
		texts[i] = w.String()
	}
	return json.NewEncoder(to).Encode(struct {
		Valid    bool      `json:"valid"`
		Problems []problem `json:"problems"`
		Warnings []string  `json:"warnings,omitempty"`
	}{len(problems) == 0, append([]problem{}, problems...), texts})
}

// checkConfig finds all problems of a configuration and the files it names, and
// settings that are valid but probably unintended.
func checkConfig(file string) (problems, warnings []problem) {
	cfg, err := config.Load(file)
	if err != nil {
		return toProblems(file, err), nil
	}
	invalid, unintended := gateway.Check(cfg)
	return toProblems(file, invalid), toProblems(file, unintended)
}

// toProblems returns the problems of an error of the configuration, with their
// positions; of nil, none.
func toProblems(file string, err error) []problem {
	invalid := new(config.InvalidError)
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &invalid):
		return []problem{{file, config.Problem{Text: err.Error()}}}
	}
	problems := make([]problem, len(invalid.Problems))
	for i, p := range invalid.Problems {
		problems[i] = problem{invalid.File, p}
	}
	return problems
}
