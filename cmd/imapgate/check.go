package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"imapgate/auth"
	"imapgate/internal/config"
	"imapgate/routing"
)

// finding is one thing wrong with a configuration or a file it names.
type finding struct {
	File   string `json:"file"`
	Line   int    `json:"line,omitempty"`
	Column int    `json:"column,omitempty"`
	Key    string `json:"key,omitempty"`
	Text   string `json:"text"`
}

// String is file:line:column: key: text, as compilers write it and editors
// read it.
func (f finding) String() string {
	s := f.File
	if f.Line > 0 {
		s += fmt.Sprintf(":%d:%d", f.Line, f.Column)
	}
	if f.Key != "" {
		s += ": " + f.Key
	}
	return s + ": " + f.Text
}

func newCheck() *cobra.Command {
	var file string
	var asJSON bool
	var user string
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Validate the configuration and the files it names",
		Long: `Read the configuration as serve does, open the certificates, keys, CA files and the
passwd-file it names, ask whether the audit log could be written, and print everything that
is wrong, with file, line and column. Nothing is connected to, and nothing is written.

The exit status is 1 when something is wrong: serve would not start. A warning leaves it 0:
serve starts with a certificate that has expired, that is not valid yet, or whose chain lacks
its intermediate, but clients may refuse it.

root may read what the gateway's user may not. --user checks with the rights of that user.`,
		Example: "  imapgate check /etc/imapgate.yaml\n  imapgate check --config new.yaml --json\n  sudo imapgate check --user imapgw",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := becomeUser(user); err != nil {
				return err
			}
			found, doubts := check(file)
			if user == "" {
				doubts = append(doubts, doubtUser("/")...)
			}
			if asJSON {
				if err := sayJSON(cmd.OutOrStdout(), found, doubts); err != nil {
					return err
				}
			} else {
				for _, f := range found {
					fmt.Fprintln(cmd.ErrOrStderr(), f)
				}
				for _, doubt := range doubts {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+doubt.String())
				}
			}
			if len(found) > 0 {
				return errSaid
			}
			if !asJSON {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is valid\n", file)
			}
			return nil
		},
	}
	configArgument(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&user, "user", "", "check as this user, the service's User=; for root")
	return cmd
}

func sayJSON(to io.Writer, found, doubts []finding) error {
	said := make([]string, len(doubts))
	for i, doubt := range doubts {
		said[i] = doubt.String()
	}
	return json.NewEncoder(to).Encode(struct {
		Valid    bool      `json:"valid"`
		Problems []finding `json:"problems"`
		Warnings []string  `json:"warnings,omitempty"`
	}{len(found) == 0, append([]finding{}, found...), said})
}

// check finds everything wrong with a configuration and the files it names, and
// what could be meant so but seldom is.
func check(file string) (found, doubts []finding) {
	cfg, err := config.Load(file)
	if err != nil {
		return placed(file, err), nil
	}
	opened, err := openFiles(cfg, zap.NewNop())
	wrong := []error{err}
	note := func(err error) { wrong = append(wrong, err) }
	judges, err := openJudges(cfg, opened, zap.NewNop())
	note(err)
	if err == nil {
		_, err = auth.New(authConfig(cfg), judges.sources(noPasswords), zap.NewNop())
		note(atSetting(err))
	}
	if cfg.Routing.Source != routing.SourceRedis {
		_, err := routing.New(routingConfig(cfg), nil, routing.Metrics{}, zap.NewNop())
		note(config.At("routing", err))
	}
	note(examineAudit(cfg))
	doubtful := errors.Join(warnings(cfg), opened.doubts(time.Now()))
	return placed(file, cfg.Place(errors.Join(wrong...))), placed(file, cfg.Place(doubtful))
}

// placed is what an error of the configuration has to say, with its places; none of nil.
func placed(file string, err error) []finding {
	invalid := new(config.Invalid)
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &invalid):
		return []finding{{File: file, Text: err.Error()}}
	}
	found := make([]finding, len(invalid.Problems))
	for i, p := range invalid.Problems {
		found[i] = finding{File: invalid.File, Line: p.Line, Column: p.Column, Key: p.Key, Text: p.Text}
	}
	return found
}

// noPasswords stands in for Redis where nobody logs in.
func noPasswords(context.Context, user) (secret, error) { return secret{}, auth.ErrUnknown }
