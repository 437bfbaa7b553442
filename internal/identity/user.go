// Package identity holds the two words every room shares: User, the canonical
// name of an account, and Secret, a password that never prints.
//
// It is below every other room and asks none of them. It does not know whether
// a user exists or a password is right; auth does.
package identity

import (
	"errors"
	"strings"
)

// MaxUser bounds a user name in bytes: 64 for the local part, one for the @,
// 255 for the domain (RFC 5321 §4.5.3.1).
const MaxUser = 64 + 1 + 255

// MaxToken bounds a bearer token in bytes: what providers issue, with some hundred
// roles or groups in it. It fits the 32 KB of a line before the login in base64.
const MaxToken = 16 << 10

// ErrName is returned for a name no account can have. Its text is constant: a
// name that was refused is hostile input.
var ErrName = errors.New("user name has characters or a form that no account has")

// User is the canonical name of an account: lower case, default domain
// applied, alphabet checked. Only Names.Canonicalize makes one, so routes, pools, limits,
// the audit log and the backend all see the same bytes. The zero User is
// nobody. Users are comparable and may be map keys.
type User struct{ name string }

// Canonicalize makes the canonical name of raw in the default alphabet, which is that of
// Dovecot's auth_username_chars (a-z 0-9 . - _ @). What an operator may have set
// otherwise is in Names.
func Canonicalize(raw, defaultDomain string) (User, error) {
	return NamesInDomain(defaultDomain).Canonicalize(raw)
}

// String is the canonical name; "" for nobody.
func (u User) String() string { return u.name }

// IsZero says whether u is nobody.
func (u User) IsZero() bool { return u.name == "" }

// Domain is what follows the @, or "".
func (u User) Domain() string {
	_, domain, _ := strings.Cut(u.name, "@")
	return domain
}
