package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Validate the configuration and the files it names",
		Long: `Read the configuration as serve does, open the certificates, CA files and the
passwd-file it names, and print everything that is wrong. Nothing is connected to.
The exit status is 1 when something is wrong.`,
		Example: "  imapgate check --config /etc/imapgate.yaml\n  imapgate check --config new.yaml --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, doubts := check(file)
			if asJSON {
				if err := sayJSON(cmd.OutOrStdout(), found, doubts); err != nil {
					return err
				}
			} else {
				for _, f := range found {
					fmt.Fprintln(cmd.ErrOrStderr(), f)
				}
				for _, doubt := range doubts {
					fmt.Fprintln(cmd.ErrOrStderr(), "warning: "+doubt)
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
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func sayJSON(to io.Writer, found []finding, doubts []string) error {
	return json.NewEncoder(to).Encode(struct {
		Valid    bool      `json:"valid"`
		Problems []finding `json:"problems"`
		Warnings []string  `json:"warnings,omitempty"`
	}{len(found) == 0, append([]finding{}, found...), doubts})
}

// check finds everything wrong with a configuration and the files it names, and
// what could be meant so but seldom is.
func check(file string) (found []finding, doubts []string) {
	cfg, err := config.Load(file)
	if invalid := new(config.Invalid); errors.As(err, &invalid) {
		found = make([]finding, len(invalid.Problems))
		for i, p := range invalid.Problems {
			found[i] = finding{File: invalid.File, Line: p.Line, Column: p.Column, Key: p.Key, Text: p.Text}
		}
		return found, nil
	}
	if err != nil {
		return []finding{{File: file, Text: err.Error()}}, nil
	}
	note := func(key string, err error) {
		for _, one := range apart(err) {
			found = append(found, finding{File: file, Key: key, Text: one.Error()})
		}
	}
	opened, wrong := openFiles(cfg, zap.NewNop())
	for _, w := range wrong {
		note(w.key, w.err)
	}
	judges, err := openJudges(cfg, opened, zap.NewNop())
	note("auth", err)
	if err == nil {
		_, err = auth.New(authConfig(cfg), judges.sources(noPasswords), zap.NewNop())
		note("auth", err)
	}
	if cfg.Routing.Source != routing.SourceRedis {
		_, err := routing.New(routingConfig(cfg), nil, routing.Metrics{}, zap.NewNop())
		note("routing", err)
	}
	return found, append(warnings(cfg), opened.doubts()...)
}

// apart gives the errors that were joined into one.
func apart(err error) []error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// noPasswords stands in for Redis where nobody logs in.
func noPasswords(context.Context, user) (secret, error) { return secret{}, auth.ErrUnknown }
