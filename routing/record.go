package routing

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// DefaultPrefix begins every key.
const DefaultPrefix = "imapgate:"

// Bounds of one record. A record beyond them is rejected.
const (
	maxFields   = 64       // more than the contract will ever define
	maxRecord   = 16 << 10 // bytes of all names and values
	maxPassword = 1024     // bytes; the longest ARGON2ID hash in use has about 200
)

// Fields of a record. Others are ignored, so that operators' notes and fields of newer
// gateways do no harm.
const (
	fieldBackend  = "backend"
	fieldLogin    = "login"
	fieldMode     = "mode"
	fieldPassword = "password"
	fieldState    = "state"
	fieldUser     = "user"

	// Of an acceptance.
	fieldAt = "at"
	fieldBy = "by"
)

const (
	stateActive  = "active"
	statePaused  = "paused"
	stateBlocked = "blocked"
)

// errInvalidRecord is wrapped by every error about the contents of a record.
var errInvalidRecord = errors.New("invalid record")

// keys builds the names of records. The alphabet of identity.User has neither a colon nor a
// brace. So two users never share a key, and no user can name the key of a domain or the
// default, or choose a cluster slot.
type keys struct{ prefix string }

func (k keys) user(u identity.User) string  { return k.prefix + "user:" + u.String() }
func (k keys) domain(domain string) string  { return k.prefix + "domain:" + domain }
func (k keys) deflt() string                { return k.prefix + "default" }
func (k keys) acceptance() string           { return k.prefix + "accepted" }
func (k keys) prefixes() (user, dom string) { return k.prefix + "user:", k.prefix + "domain:" }

// isRecord reports whether key names a record that some user may have.
func (k keys) isRecord(key string, names identity.Names) bool {
	user, domain := k.prefixes()
	if name, ok := strings.CutPrefix(key, user); ok {
		u, err := names.Canonicalize(name)
		return err == nil && u.String() == name
	}
	if name, ok := strings.CutPrefix(key, domain); ok {
		canonical, err := names.CanonicalizeDomain(name)
		return err == nil && canonical == name
	}
	return key == k.deflt()
}

// match returns the kind of the record that key names.
func (k keys) match(key string) Match {
	switch user, _ := k.prefixes(); {
	case strings.HasPrefix(key, user):
		return MatchUser
	case key == k.deflt():
		return MatchDefault
	}
	return MatchDomain
}

// candidates returns the keys of the records that may decide for u, in order of precedence.
func (k keys) candidates(u identity.User) []string {
	if u.Domain() == "" {
		return []string{k.user(u), k.deflt()}
	}
	return []string{k.user(u), k.domain(u.Domain()), k.deflt()}
}

// record is the content of one key. The zero record means that there is no such key.
type record struct {
	present  bool
	backend  string // "" only if state is paused or blocked
	login    string
	mode     event.Mode
	state    string
	password identity.Secret
}

// rules are what records are checked against.
type rules struct {
	backends map[string]bool
	// If routes come from elsewhere, a record is only for the password: it needs no backend,
	// and a backend in it is not used.
	passwordOnly bool
	names        identity.Names
}

func newRules(c Config) rules {
	r := rules{backends: make(map[string]bool, len(c.Backends)), passwordOnly: c.Source == SourceStatic || c.Source == SourceHTTP, names: c.Names}
	for _, b := range c.Backends {
		r.backends[b] = true
	}
	return r
}

// parse parses and checks the fields of a record: of u's own, or of a domain or the default if
// u is zero.
func (r rules) parse(u identity.User, fields map[string]string) (record, error) {
	rec, err := r.parseShared(fields)
	if err != nil || !rec.present || u.IsZero() {
		return rec, err
	}
	// A reply that belongs to another query would contain another user's route.
	if owner, ok := fields[fieldUser]; ok && owner != u.String() {
		return record{}, fieldError(fieldUser, "names another user")
	}
	if login, ok := fields[fieldLogin]; ok {
		if err := r.checkLogin(login); err != nil {
			return record{}, err
		}
		rec.login = login
	}
	if hash, ok := fields[fieldPassword]; ok {
		if len(hash) == 0 || len(hash) > maxPassword || strings.ContainsFunc(hash, isUnprintable) {
			return record{}, fieldError(fieldPassword, "is empty, too long or not printable")
		}
		rec.password = identity.NewSecret(hash)
	}
	return rec, nil
}

// parseShared parses and checks the fields that every kind of record has.
func (r rules) parseShared(fields map[string]string) (record, error) {
	if len(fields) == 0 {
		return record{}, nil
	}
	if err := checkSize(fields); err != nil {
		return record{}, err
	}
	rec := record{present: true, state: stateActive}
	if state, ok := fields[fieldState]; ok {
		if !slices.Contains([]string{stateActive, statePaused, stateBlocked}, state) {
			return record{}, fieldError(fieldState, "is not active, paused or blocked")
		}
		rec.state = state
	}
	if name, ok := fields[fieldMode]; ok {
		mode := event.Mode(name)
		if !event.Known(mode) {
			return record{}, fieldError(fieldMode, "is not splice, reuse, resume or park")
		}
		rec.mode = mode
	}
	if r.passwordOnly {
		return rec, nil
	}
	backend, ok := fields[fieldBackend]
	if ok && !r.backends[backend] {
		return record{}, fieldError(fieldBackend, fmt.Sprintf("is not a configured backend; configured: %.300s",
			strings.Join(slices.Sorted(maps.Keys(r.backends)), ", ")))
	}
	// A user can be blocked without a backend. Any other record without one may be half of a
	// write; the domain's backend must not replace it.
	if !ok && rec.state == stateActive {
		return record{}, fieldError(fieldBackend, "is missing")
	}
	rec.backend = backend
	return rec, nil
}

func checkSize(fields map[string]string) error {
	if len(fields) > maxFields {
		return fmt.Errorf("%w: more than %d fields", errInvalidRecord, maxFields)
	}
	size := 0
	for name, value := range fields {
		size += len(name) + len(value)
	}
	if size > maxRecord {
		return fmt.Errorf("%w: more than %d bytes", errInvalidRecord, maxRecord)
	}
	return nil
}

// fieldError omits the value of the field: it may be a secret.
func fieldError(field, problem string) error {
	return fmt.Errorf("%w: field %q %s", errInvalidRecord, field, problem)
}

// checkLogin rejects names that cannot be sent as one IMAP atom (RFC 9051 §9, ATOM-CHAR): no
// space, control, double quote, backslash, parenthesis, brace, bracket, percent sign or
// asterisk. The asterisk also separates user and master in a master login. Non-ASCII letters
// are allowed where user names may have them.
func (r rules) checkLogin(login string) error {
	if len(login) == 0 || len(login) > identity.MaxUser {
		return fieldError(fieldLogin, "is empty or too long")
	}
	isForbidden := isUnprintable
	if r.names.UTF8() {
		isForbidden = isNotNameRune
	}
	if !utf8.ValidString(login) || strings.ContainsFunc(login, isForbidden) || strings.ContainsAny(login, " (){}[]%*\"`\\") {
		return fieldError(fieldLogin, "has a character that no login may have")
	}
	return nil
}

func isUnprintable(c rune) bool { return c < ' ' || c > '~' }

// isNotNameRune is isUnprintable but for letters, marks and digits that are not ASCII.
func isNotNameRune(c rune) bool {
	return isUnprintable(c) && (c < utf8.RuneSelf || !unicode.In(c, unicode.Letter, unicode.Mark, unicode.Digit))
}

// decision is the result of the records of one user: the record that decided.
type decision struct {
	record
	match Match
	key   string
}

// rank orders the sources. A decision of lower rank can replace one of higher rank only after
// a record was removed.
func (d decision) rank() int {
	switch d.match {
	case MatchUser:
		return 3
	case MatchDomain:
		return 2
	case MatchDefault:
		return 1
	}
	return 0
}

// resolution is a decision and how it was obtained.
type resolution struct {
	decision
	origin   event.Origin
	age      time.Duration
	fromDisk bool
}

// toRoute converts a resolution to the results of Lookup.
func (r resolution) toRoute(u identity.User) (Route, error) {
	switch {
	case r.match == MatchNone:
		return Route{}, ErrNoUser
	case r.state == stateBlocked:
		return Route{}, fmt.Errorf("%w by %s", ErrBlocked, r.key)
	case r.state == statePaused:
		return Route{}, fmt.Errorf("%w by %s", ErrPaused, r.key)
	}
	login := r.login
	if login == "" {
		login = u.String()
	}
	return Route{
		User: u, Backend: r.backend, Login: login, Mode: r.mode,
		Match: r.match, Key: r.key, Age: r.age, Origin: r.origin,
	}, nil
}
