package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"imapgate/auth"
	"imapgate/internal/config"
	"imapgate/internal/identity"
	"imapgate/internal/plainfile"
)

// maxPasswordBytes bounds a password read from standard input.
const maxPasswordBytes = 4 << 10

var errMismatch = errors.New("the two passwords differ")

func newPasswd() *cobra.Command {
	var scheme, name, file string
	cmd := &cobra.Command{
		Use:   "passwd",
		Short: "Hash a password",
		Long: `Read a password and print its hash: as a line of a passwd-file with --user, otherwise
bare, for the field password in Redis.

On a terminal it prompts twice, without echo. Otherwise the first line of standard input is
the password.`,
		Example: `  imapgate passwd --user alice@example.org >> /etc/imapgate/users
  redis-cli HSET imapgate:user:alice@example.org password "$(imapgate passwd)"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return printHash(cmd, scheme, name, file) },
	}
	cmd.Flags().StringVar(&scheme, "scheme", auth.Schemes()[0], "one of "+strings.Join(auth.Schemes(), ", "))
	cmd.Flags().StringVar(&name, "user", "", "print a passwd-file line for this user")
	cmd.Flags().StringVarP(&file, "config", "c", "", "apply auth.names and auth.default_domain of this configuration to the name")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml") // the flag was just made
	_ = cmd.RegisterFlagCompletionFunc("scheme", cobra.FixedCompletions(auth.Schemes(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// loadNameRules returns the rules for user names of the configuration, or the
// default rules without one.
func loadNameRules(file string) (identity.Names, error) {
	if file == "" {
		return identity.Names{}, nil
	}
	cfg, err := config.Load(file)
	if err != nil {
		return identity.Names{}, err
	}
	return cfg.Auth.NameRules, nil
}

func printHash(cmd *cobra.Command, scheme, name, file string) error {
	scheme = strings.ToUpper(scheme)
	if !slices.Contains(auth.Schemes(), scheme) {
		return fmt.Errorf("scheme %q is not one of %s", scheme, strings.Join(auth.Schemes(), ", "))
	}
	if name != "" {
		names, err := loadNameRules(file)
		if err != nil {
			return err
		}
		u, err := names.Canonicalize(name)
		if err != nil {
			return fmt.Errorf("user %q: %w", name, err)
		}
		name = u.String() + ":"
	}
	password, err := readPassword(cmd)
	if err != nil {
		return err
	}
	hash, err := auth.Hash(scheme, password)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), name+hash)
	return err
}

// readPassword prompts twice on a terminal, or reads the first line of other input.
func readPassword(cmd *cobra.Command) (identity.Secret, error) {
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return promptPassword(f, cmd.ErrOrStderr())
	}
	in := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), maxPasswordBytes))
	line, err := in.ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return identity.Secret{}, fmt.Errorf("read the password: %w", err)
	}
	if len(line) == maxPasswordBytes {
		return identity.Secret{}, errors.New("the password is too long")
	}
	text, err := plainfile.DecodeText([]byte(line))
	if err != nil {
		return identity.Secret{}, fmt.Errorf("read the password: %w", err)
	}
	return identity.NewSecret(strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")), nil
}

func promptPassword(from *os.File, prompts io.Writer) (identity.Secret, error) {
	var typed [2][]byte
	for i, prompt := range []string{"Password: ", "Again: "} {
		fmt.Fprint(prompts, prompt)
		var err error
		typed[i], err = term.ReadPassword(int(from.Fd()))
		fmt.Fprintln(prompts)
		if err != nil {
			return identity.Secret{}, fmt.Errorf("read the password: %w", err)
		}
	}
	if string(typed[0]) != string(typed[1]) {
		return identity.Secret{}, errMismatch
	}
	return identity.NewSecret(string(typed[0])), nil
}
