package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"imapgate/internal/config"
	"imapgate/internal/sanitize"
	"imapgate/routing"
)

// targetFlags adds the flags for records that are not a user's.
func (o *routeOptions) targetFlags(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&o.domain, "domain", "", "the record of a domain, instead of USER")
	cmd.Flags().BoolVar(&o.isDefault, "default", false, "the record of all others, instead of USER")
	cmd.MarkFlagsMutuallyExclusive("domain", "default")
	return cmd
}

// isGroupRecord reports whether the flags name the record.
func (o *routeOptions) isGroupRecord(cmd *cobra.Command) bool {
	return o.isDefault || cmd.Flags().Changed("domain")
}

// requireRecord checks the arguments of get and del.
func (o *routeOptions) requireRecord(cmd *cobra.Command, args []string) error {
	switch {
	case o.isGroupRecord(cmd) && len(args) > 0:
		return fmt.Errorf("only one of a user name, --domain and --default is allowed: %s", cmd.UseLine())
	case !o.isGroupRecord(cmd) && len(args) != 1:
		return fmt.Errorf("one user name is needed: %s", cmd.UseLine())
	}
	return nil
}

// requireRecordAndFields checks the arguments of set.
func (o *routeOptions) requireRecordAndFields(cmd *cobra.Command, args []string) error {
	switch {
	case o.isGroupRecord(cmd) && len(args) == 0:
		return fmt.Errorf("at least one field is needed: %s", cmd.UseLine())
	case !o.isGroupRecord(cmd) && len(args) < 2:
		return fmt.Errorf("a user name and at least one field are needed: %s", cmd.UseLine())
	}
	return nil
}

// parseTarget returns the record that the flags or the first argument name.
func (o *routeOptions) parseTarget(cmd *cobra.Command, cfg *config.Config, args []string) (routing.Target, error) {
	switch {
	case o.isDefault:
		return routing.ForDefault(), nil
	case o.isGroupRecord(cmd):
		domain, err := cfg.Auth.NameRules.CanonicalizeDomain(o.domain)
		if err != nil {
			return routing.Target{}, fmt.Errorf("domain %q: %w", o.domain, err)
		}
		return routing.ForDomain(domain), nil
	}
	name := args[0]
	if err := checkNotReserved(name, cfg.Auth.DefaultDomain); err != nil {
		return routing.Target{}, err
	}
	u, err := cfg.Auth.NameRules.Canonicalize(name)
	if err != nil {
		return routing.Target{}, fmt.Errorf("user %q: %w", name, err)
	}
	return routing.ForUser(u), nil
}

// checkNotReserved refuses names that operators use for other records than a user's.
// A real account with such a name can be given with its domain.
func checkNotReserved(name, defaultDomain string) error {
	switch domain, isDomain := strings.CutPrefix(name, "@"); {
	case strings.EqualFold(name, "default"):
		return errors.New(`"default" is not read as a user: --default is the record of all others; for a user of that name, write default@DOMAIN`)
	case isDomain && domain != "":
		return fmt.Errorf("%q is not a user: --domain %s is the record of a domain", name, sanitize.Quote(domain))
	case defaultDomain != "" && strings.EqualFold(name, defaultDomain):
		return fmt.Errorf("%q is not read as a user: --domain %[2]s is the record of the domain; for a user of that name, write %[2]s@%[2]s", name, defaultDomain)
	}
	return nil
}

// recordName is the JSON form of a record's name.
type recordName struct {
	User    string `json:"user,omitempty"`
	Domain  string `json:"domain,omitempty"`
	Default bool   `json:"default,omitempty"`
}

func recordNameOf(t routing.Target) recordName {
	switch {
	case !t.User().IsZero():
		return recordName{User: t.String()}
	case t == routing.ForDefault():
		return recordName{Default: true}
	}
	return recordName{Domain: t.String()}
}
