package routing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"imapgate/internal/identity"
)

// Target names one record: a user's, a domain's, or the default. The zero Target is
// the default.
type Target struct {
	user   identity.User
	domain string
}

// ForUser is the record of one user.
func ForUser(u identity.User) Target { return Target{user: u} }

// ForDomain is the record of all users of a domain, in its canonical form, who have
// none of their own.
func ForDomain(domain string) Target { return Target{domain: domain} }

// ForDefault is the record of all users for whom there is no other.
func ForDefault() Target { return Target{} }

// User is whose record it is; the zero User for a domain's and the default.
func (t Target) User() identity.User { return t.user }

// String is the name of the user or the domain, or "the default".
func (t Target) String() string {
	switch {
	case !t.user.IsZero():
		return t.user.String()
	case t.domain != "":
		return t.domain
	}
	return "the default"
}

// Fields are those that this kind of record may have.
func (t Target) Fields() []string {
	switch {
	case !t.user.IsZero():
		return []string{fieldBackend, fieldLogin, fieldMode, fieldPassword, fieldState}
	case t.domain != "":
		return []string{fieldBackend, fieldMode, fieldState}
	}
	return []string{fieldBackend, fieldMode}
}

// key is the record's name in Redis.
func (k keys) key(t Target) string {
	switch {
	case !t.user.IsZero():
		return k.user(t.user)
	case t.domain != "":
		return k.domain(t.domain)
	}
	return k.deflt()
}

// checkRecord reads a record as a lookup does.
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
	unset []string // fields that are removed
}

// planEdit makes of a record and the fields that change what is to be written; an empty
// value removes a field. What a gateway would refuse is an error.
func (r rules) planEdit(t Target, fields, change map[string]string) (edit, error) {
	e, result := edit{set: make(map[string]string)}, maps.Clone(fields)
	if result == nil {
		result = make(map[string]string)
	}
	if !t.user.IsZero() { // so that no other user's question is ever answered with it
		e.set[fieldUser], result[fieldUser] = t.user.String(), t.user.String()
	}
	for name, value := range change {
		// A field that does not belong there can still be removed.
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
		return edit{}, errors.New("no field would be left; a record that is to go is deleted")
	}
	slices.Sort(e.unset)
	if err := r.checkRecord(t, result); err != nil {
		return edit{}, fmt.Errorf("would be refused: %w", err)
	}
	return e, nil
}

// scriptArgs are those of writeScript.
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
