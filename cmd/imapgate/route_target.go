package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/routing"
)

// targetFlags adds what names a record that is not a user's.
func (o *routeOptions) targetFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&o.domain, "domain", "", "the record of a domain, in the place of USER")
	cmd.Flags().BoolVar(&o.deflt, "default", false, "the record of all others, in the place of USER")
	cmd.MarkFlagsMutuallyExclusive("domain", "default")
	return cmd
}

// isShared says whether the flags name the record.
func (o *routeOptions) isShared(cmd *cobra.Command) bool {
	return o.deflt || cmd.Flags().Changed("domain")
}

// oneRecord is what get and del take.
func (o *routeOptions) oneRecord(cmd *cobra.Command, args []string) error {
	switch {
	case o.isShared(cmd) && len(args) > 0:
		return fmt.Errorf("a user name, --domain and --default exclude each other: %s", cmd.UseLine())
	case !o.isShared(cmd) && len(args) != 1:
		return fmt.Errorf("one user name is needed: %s", cmd.UseLine())
	}
	return nil
}

// recordAndFields is what set takes.
func (o *routeOptions) recordAndFields(cmd *cobra.Command, args []string) error {
	switch {
	case o.isShared(cmd) && len(args) == 0:
		return fmt.Errorf("at least one field is needed: %s", cmd.UseLine())
	case !o.isShared(cmd) && len(args) < 2:
		return fmt.Errorf("a user name and at least one field are needed: %s", cmd.UseLine())
	}
	return nil
}

// target is the record that the flags name, or the first argument.
func (o *routeOptions) target(cmd *cobra.Command, cfg *config.Config, args []string) (routing.Target, error) {
	switch {
	case o.deflt:
		return routing.ForDefault(), nil
	case o.isShared(cmd):
		domain, err := cfg.Auth.Spelling.Domain(o.domain)
		if err != nil {
			return routing.Target{}, fmt.Errorf("domain %q: %w", o.domain, err)
		}
		return routing.ForDomain(domain), nil
	}
	name := args[0]
	if err := checkMeant(name, cfg.Auth.DefaultDomain); err != nil {
		return routing.Target{}, err
	}
	u, err := cfg.Auth.Spelling.Canon(name)
	if err != nil {
		return routing.Target{}, fmt.Errorf("user %q: %w", name, err)
	}
	return routing.ForUser(u), nil
}

// checkMeant refuses names by which operators mean another record than a user's. An
// account that is really called so has a domain.
func checkMeant(name, defaultDomain string) error {
	switch domain, isDomain := strings.CutPrefix(name, "@"); {
	case strings.EqualFold(name, "default"):
		return errors.New(`"default" is not taken for a user: --default is the record of all others; a user of that name is default@DOMAIN`)
	case isDomain && domain != "":
		return fmt.Errorf("%q is not a user: --domain %s is the record of a domain", name, plain(domain))
	case defaultDomain != "" && strings.EqualFold(name, defaultDomain):
		return fmt.Errorf("%q is not taken for a user: --domain %[2]s is the record of the domain; a user of that name is %[2]s@%[2]s", name, defaultDomain)
	}
	return nil
}

// recordName is a record's name in JSON.
type recordName struct {
	User    string `json:"user,omitempty"`
	Domain  string `json:"domain,omitempty"`
	Default bool   `json:"default,omitempty"`
}

func nameOf(t routing.Target) recordName {
	switch {
	case !t.User().IsZero():
		return recordName{User: t.String()}
	case t == routing.ForDefault():
		return recordName{Default: true}
	}
	return recordName{Domain: t.String()}
}
