package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imapgate/internal/admin"
	"imapgate/internal/admin/api"
	"imapgate/internal/config"
	"imapgate/internal/plainfile"
)

func newToken() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Short: "Make, list and revoke tokens for the admin address",
		Long: `Change the file of tokens, admin.tokens_file in the configuration. Running gateways follow
its changes. The file has only a hash of each token: a token that is lost is made again.`,
	}
	configFlag(cmd.PersistentFlags())
	jsonFlag(cmd.PersistentFlags())
	cmd.PersistentFlags().String("file", "", "the file of tokens, instead of the configuration's")
	return withSubcommands(cmd, newTokenNew(), newTokenList(), newTokenRevoke())
}

func newTokenNew() *cobra.Command {
	var role string
	var expires time.Duration
	cmd := &cobra.Command{
		Use: "new NAME", Short: "Make a token", Args: requireOne("name"),
		Long: `Make a token and add it to the file. The token itself is printed once, and is nowhere else.
A viewer may read; an operator may also change. The name is in the audit record of each change.`,
		Example: `  imapgate token new monitoring --role viewer
  imapgate token new alice --role operator --expires 720h`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t := admin.Token{Name: args[0], Role: api.Role(role)}
			if expires > 0 {
				t.Expires = time.Now().Add(expires)
			}
			secret := rand.Text() + rand.Text()
			t.Hash = sha256.Sum256([]byte(secret))
			if _, err := admin.ParseToken(t.String()); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			err := editTokens(cmd, func(lines []string) ([]string, error) {
				if slices.ContainsFunc(lines, func(line string) bool { return tokenName(line) == t.Name }) {
					return nil, fmt.Errorf("there is a token %s already; imapgate token revoke %s removes it", t.Name, t.Name)
				}
				return append(lines, t.String()), nil
			})
			if err != nil {
				return err
			}
			return printResult(cmd, map[string]string{"name": t.Name, "role": role, "token": secret}, secret+"\n")
		},
	}
	cmd.Flags().StringVar(&role, "role", string(api.Viewer), "viewer or operator")
	durationFlag(cmd.Flags(), &expires, "expires", "for how long it is valid; left out: until it is revoked")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{string(api.Viewer), string(api.Operator)}, cobra.ShellCompDirectiveNoFileComp)) // the flag was just made
	return cmd
}

func newTokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens, without the tokens themselves", Args: cobra.NoArgs,
		Example: "  imapgate token list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, text, err := readTokens(cmd)
			if err != nil {
				return err
			}
			tokens, err := admin.ParseTokens(text)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			type entry struct {
				Name    string   `json:"name"`
				Role    api.Role `json:"role"`
				Expires api.Time `json:"expires"`
			}
			list, rows := make([]entry, 0, len(tokens)), [][]string{}
			for _, t := range tokens {
				list = append(list, entry{t.Name, t.Role, api.Time{Time: t.Expires}})
				expires := "never"
				switch {
				case t.Expires.IsZero():
				case time.Now().After(t.Expires):
					expires = "expired"
				default:
					expires = t.Expires.Local().Format(time.RFC3339)
				}
				rows = append(rows, []string{t.Name, string(t.Role), expires})
			}
			return printResult(cmd, list, newTable(screenWidth(cmd), []string{"NAME", "ROLE", "EXPIRES"}, rows))
		},
	}
}

func newTokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke NAME", Short: "Revoke a token", Args: requireOne("name"),
		Example: "  imapgate token revoke alice",
		RunE: func(cmd *cobra.Command, args []string) error {
			err := editTokens(cmd, func(lines []string) ([]string, error) {
				kept := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return tokenName(line) == args[0] })
				if len(kept) == len(lines) {
					return nil, fmt.Errorf("there is no token %s", args[0])
				}
				return kept, nil
			})
			if err != nil {
				return err
			}
			return printResult(cmd, map[string]string{"revoked": args[0]}, "revoked "+args[0]+"; gateways that run notice it within seconds\n")
		},
	}
}

// tokenName returns the name in a line of the file; "" in a comment.
func tokenName(line string) string {
	name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
	if strings.HasPrefix(name, "#") {
		return ""
	}
	return name
}

// tokensFile returns the file of tokens.
func tokensFile(cmd *cobra.Command) (string, error) {
	if file, _ := cmd.Flags().GetString("file"); file != "" {
		return file, nil
	}
	cfg, err := config.Load(configFile(cmd))
	switch {
	case err != nil:
		return "", err
	case cfg.Admin.TokensFile == "":
		return "", errors.New("the configuration has no file of tokens: set admin.tokens_file, or give --file")
	}
	return cfg.Admin.TokensFile, nil
}

// readTokens returns the file of tokens and its content, which is empty if there is none yet.
func readTokens(cmd *cobra.Command) (file string, text []byte, err error) {
	if file, err = tokensFile(cmd); err != nil {
		return "", nil, err
	}
	text, err = os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return file, text, err
}

// editTokens replaces the file of tokens by its edited lines. It keeps its mode and its owner.
func editTokens(cmd *cobra.Command, edit func(lines []string) ([]string, error)) error {
	file, text, err := readTokens(cmd)
	if err != nil {
		return err
	}
	var lines []string
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); {
		lines = append(lines, scan.Text())
	}
	if lines, err = edit(lines); err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if info, err := os.Stat(file); err == nil {
		mode = info.Mode().Perm()
	}
	return plainfile.Replace(file, func(f *os.File) error {
		_, err := f.WriteString(strings.Join(append(lines, ""), "\n"))
		return errors.Join(err, f.Chmod(mode), keepOwner(f, file))
	})
}
