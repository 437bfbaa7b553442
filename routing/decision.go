package routing

import (
	"fmt"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
)

// decision is the result of the records of one user.
type decision struct {
	match     Match
	key       string
	backend   string
	login     string
	mode      event.Mode
	state     string
	hasRecord bool // the user has a record, even if it decides nothing
	password  identity.Secret
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

// decide applies the precedence: the user's record, then the domain's, then the default.
func (k keys) decide(u identity.User, user, domain, defaultRecord record) decision {
	d := decision{hasRecord: user.present, password: user.password}
	var from record
	switch {
	case user.present:
		d.match, d.key, from = MatchUser, k.user(u), user
	case domain.present:
		d.match, d.key, from = MatchDomain, k.domain(u.Domain()), domain
	case defaultRecord.present:
		d.match, d.key, from = MatchDefault, k.deflt(), defaultRecord
	default:
		return d
	}
	d.backend, d.mode, d.state, d.login = from.backend, from.mode, from.state, from.login
	return d
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
