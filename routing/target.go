package routing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"imapgate/internal/identity"
)

// Target names one record: that of a user, that of a domain, or the default. The zero Target
// is the default.
type Target struct {
	user   identity.User
	domain string
}

// ForUser returns the target for the record of one user.
func ForUser(u identity.User) Target { return Target{user: u} }

// ForDomain returns the target for the users of a domain without a record of their own. domain
// is in canonical form.
func ForDomain(domain string) Target { return Target{domain: domain} }

// ForDefault returns the target for all users without another record.
func ForDefault() Target { return Target{} }

// User returns the user of a user's record, and the zero User for other records.
func (t Target) User() identity.User { return t.user }

// String returns the name of the user or the domain, or "the default".
func (t Target) String() string {
	switch {
	case !t.user.IsZero():
		return t.user.String()
	case t.domain != "":
		return t.domain
	}
	return "the default"
}

// Fields returns the names of the fields that this kind of record may have.
func (t Target) Fields() []string {
	switch {
	case !t.user.IsZero():
		return []string{fieldBackend, fieldLogin, fieldMode, fieldPassword, fieldState}
	case t.domain != "":
		return []string{fieldBackend, fieldMode, fieldState}
	}
	return []string{fieldBackend, fieldMode}
}

// key returns the Redis key of the record.
func (k keys) key(t Target) string {
	switch {
	case !t.user.IsZero():
		return k.user(t.user)
	case t.domain != "":
		return k.domain(t.domain)
	}
	return k.deflt()
}

// checkRecord validates a record as a lookup does.
func (r rules) checkRecord(t Target, fields map[string]string) error {
	var err error
	if t.user.IsZero() {
		_, err = r.parseShared(fields)
	} else {
		_, err = r.parseUser(t.user, fields)
	}
	return err
}

// edit is a change of one record.
type edit struct {
	set   map[string]string
	unset []string // fields to remove
}

// planEdit computes the edit that applies change to a record with these fields; an empty value
// removes a field. It returns an error if a gateway would reject the resulting record.
func (r rules) planEdit(t Target, fields, change map[string]string) (edit, error) {
	e, result := edit{set: make(map[string]string)}, maps.Clone(fields)
	if result == nil {
		result = make(map[string]string)
	}
	if !t.user.IsZero() { // guards against a reply that belongs to another user's query
		e.set[fieldUser], result[fieldUser] = t.user.String(), t.user.String()
	}
	for name, value := range change {
		// A field that is not allowed here can still be removed.
		if allowed := t.Fields(); value != "" && !slices.Contains(allowed, name) {
			return edit{}, fmt.Errorf("%q is not one of %s", name, strings.Join(allowed, ", "))
		}
		if value == "" && name == fieldUser {
			return edit{}, fmt.Errorf("field %q is the owner and cannot be removed", name)
		}
		if value == "" {
			delete(result, name)
			e.unset = append(e.unset, name)
			continue
		}
		result[name], e.set[name] = value, value
	}
	if len(result) == 0 {
		return edit{}, errors.New("no field would be left; delete the record to remove it")
	}
	slices.Sort(e.unset)
	if err := r.checkRecord(t, result); err != nil {
		return edit{}, fmt.Errorf("gateways would reject it: %w", err)
	}
	return e, nil
}

// scriptArgs returns the arguments of writeScript.
func (e edit) scriptArgs() []any {
	args := []any{len(e.unset)}
	for _, name := range e.unset {
		args = append(args, name)
	}
	for _, name := range slices.Sorted(maps.Keys(e.set)) {
		args = append(args, name, e.set[name])
	}
	return args
}
