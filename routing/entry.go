package routing

import (
	"container/list"
	"math/rand/v2"
	"time"

	"imapgate/internal/identity"
)

// entry is what is known of one user. The cache's lock guards it.
type entry struct {
	user   identity.User
	answer answer
	place  *list.Element // in the list whose bound it counts against
	within *list.List

	learned  time.Time // when Redis last gave or confirmed the answer
	expires  time.Time // when it is asked again
	missing  time.Time // when Redis first said the deciding record is gone; or zero
	changed  bool      // Redis has named the user's key since
	fromDisk bool      // learned by an earlier process
	held     bool      // kept against what Redis says now
	seen     sight     // what was known of other changes when it was learned
}

// sight is the state of everything but the user's own key that an answer hangs
// on. When it no longer is the current one, the answer is asked again.
type sight struct {
	doubt  uint64 // counts the moments at which any change may have been missed
	domain *scope
	dom    uint64 // of the domain's record
	deflt  uint64 // of the default record
}

// scope counts the changes Redis named to one domain's record.
type scope struct{ changes uint64 }

// standing is how far an entry may be believed.
type standing int

const (
	unknown  standing = iota // nothing that could serve
	changed                  // Redis said that a record behind it changed
	expired                  // its time is over
	doubtful                 // a change may have been missed, or is being confirmed
	fresh
)

// standing judges e; the order is that of how urgent a question to Redis is.
func (c *cache) standing(e *entry, now time.Time) standing {
	switch {
	case e == nil:
		return unknown
	case !c.servable(e, now) && !now.Before(e.expires):
		return unknown
	case e.changed || c.scopesChanged(e):
		return changed
	case !now.Before(e.expires):
		return expired
	case e.seen.doubt == c.doubt:
		return fresh
	case !c.servable(e, now):
		return expired
	}
	return doubtful
}

// servable says whether e may stand in while Redis gives no answer. "No such
// user" never may: Redis being away does not make users disappear.
func (c *cache) servable(e *entry, now time.Time) bool {
	return e != nil && e.answer.source != Nobody && now.Sub(e.learned) < c.cfg.Stale
}

// scopesChanged is about the records behind the user's own; they matter only to
// an answer the user's own record did not give.
func (c *cache) scopesChanged(e *entry) bool {
	if e.answer.source == User || e.seen.domain == nil {
		return false
	}
	return e.seen.dom != e.seen.domain.changes || e.seen.deflt != c.deflt.changes
}

// named says whether Redis has named the very record that gave e its answer.
func (c *cache) named(e *entry) bool {
	switch e.answer.source {
	case User:
		return e.changed
	case Domain:
		return e.seen.domain != nil && e.seen.dom != e.seen.domain.changes
	case Default:
		return e.seen.domain != nil && e.seen.deflt != c.deflt.changes
	}
	return true
}

// look notes the current state for an answer about to be asked for.
func (c *cache) look(u identity.User) sight {
	d := c.scope(u.Domain())
	return sight{doubt: c.doubt, domain: d, dom: d.changes, deflt: c.deflt.changes}
}

// scope finds or makes the counter of a domain. When there are too many, all are
// let go and every entry is doubted, because it holds a counter nobody advances.
func (c *cache) scope(domain string) *scope {
	s := c.scopes[domain]
	if s == nil {
		if len(c.scopes) >= maxScopes {
			clear(c.scopes)
			c.doubt++
		}
		s = &scope{}
		c.scopes[domain] = s
	}
	return s
}

// keep stores e in the list it belongs to, newest first, and drops the oldest
// over the bound. Users with a record of their own have a list for themselves:
// nobody can push them out by trying names.
func (c *cache) keep(e *entry) {
	into, bound := &c.derived, c.maxDerived
	if e.answer.own {
		into, bound = &c.owned, c.maxOwned
	}
	if e.within == into {
		into.MoveToFront(e.place)
		return
	}
	c.drop(e)
	e.within, e.place = into, into.PushFront(e)
	c.entries[e.user] = e
	for into.Len() > bound {
		c.drop(into.Back().Value.(*entry))
	}
}

// drop forgets e, if it was kept.
func (c *cache) drop(e *entry) {
	if e.within == nil {
		return
	}
	e.within.Remove(e.place)
	e.within, e.place = nil, nil
	delete(c.entries, e.user)
}

// lifetime is how long a is fresh from now on. It varies by a tenth, so that
// what was learned together is not asked again together.
func (c *cache) lifetime(a answer) time.Duration {
	ttl := c.cfg.TTL
	if a.source == Nobody {
		ttl = min(c.cfg.Negative, ttl)
	}
	return ttl - rand.N(ttl/10+1)
}
