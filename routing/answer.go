package routing

import (
	"fmt"
	"time"

	"imapgate/internal/identity"
)

// answer is what the records of one user come to.
type answer struct {
	source   Source
	key      string
	backend  string
	login    string
	mode     string
	state    string
	own      bool // the user has a record, even if it decides nothing yet
	password identity.Secret
}

// rank orders sources: an answer of lower rank can replace one of higher rank
// only when a record has gone.
func (a answer) rank() int {
	switch a.source {
	case User:
		return 3
	case Domain:
		return 2
	case Default:
		return 1
	}
	return 0
}

// decide is the one place where user comes before domain before default.
func (k keys) decide(u identity.User, user, domain, deflt record) answer {
	a := answer{own: user.present, password: user.password}
	var from record
	switch {
	case user.present:
		a.source, a.key, from = User, k.user(u), user
	case domain.present:
		a.source, a.key, from = Domain, k.domain(u.Domain()), domain
	case deflt.present:
		a.source, a.key, from = Default, k.deflt(), deflt
	default:
		return a
	}
	a.backend, a.mode, a.state, a.login = from.backend, from.mode, from.state, from.login
	return a
}

// got is an answer with how it was obtained.
type got struct {
	answer
	from     From
	age      time.Duration
	fromDisk bool
}

// route makes an answer into what Lookup returns.
func (g got) route(u identity.User) (Route, error) {
	switch {
	case g.source == Nobody:
		return Route{}, ErrNoUser
	case g.state == stateBlocked:
		return Route{}, fmt.Errorf("%w by %s", ErrBlocked, g.key)
	case g.state == statePaused:
		return Route{}, fmt.Errorf("%w by %s", ErrPaused, g.key)
	}
	login := g.login
	if login == "" {
		login = u.String()
	}
	return Route{
		User: u, Backend: g.backend, Login: login, Mode: g.mode,
		Source: g.source, Key: g.key, Age: g.age, From: g.from,
	}, nil
}
