package routing

import (
	"container/list"
	"math/rand/v2"
	"time"

	"imapgate/internal/identity"
)

// entry is what is known of one user. The cache's lock guards it.
type entry struct {
	user     identity.User
	decision decision
	elem     *list.Element // in the list whose bound it counts against
	list     *list.List

	learnedAt    time.Time // when Redis last gave or confirmed the answer
	expiresAt    time.Time // when it is asked again
	missingSince time.Time // when Redis first said the deciding record is gone; or zero
	invalidated  bool      // Redis has named the user's key since
	fromDisk     bool      // learned by an earlier process
	retained     bool      // kept against what Redis says now
	versions     versions  // what was known of other changes when it was learned
}

// versions is the state of everything but the user's own key that an answer hangs
// on. When it no longer is the current one, the answer is asked again.
type versions struct {
	epoch          uint64 // counts the moments at which any change may have been missed
	domain         *changeCounter
	domainVersion  uint64 // of the domain's record
	defaultVersion uint64 // of the default record
}

// changeCounter counts the changes Redis named to one domain's record.
type changeCounter struct{ n uint64 }

// freshness is how far an entry may be believed.
type freshness int

const (
	entryMissing     freshness = iota // nothing that could serve
	entryInvalidated                  // Redis said that a record behind it changed
	entryExpired                      // its time is over
	entrySuspect                      // a change may have been missed, or is being confirmed
	entryFresh
)

// freshnessOf judges e; the order is that of how urgent a question to Redis is.
func (c *cache) freshnessOf(e *entry, now time.Time) freshness {
	switch {
	case e == nil:
		return entryMissing
	case !c.canServe(e, now) && !now.Before(e.expiresAt):
		return entryMissing
	case e.invalidated || c.sharedChanged(e):
		return entryInvalidated
	case !now.Before(e.expiresAt):
		return entryExpired
	case e.versions.epoch == c.epoch:
		return entryFresh
	case !c.canServe(e, now):
		return entryExpired
	}
	return entrySuspect
}

// canServe says whether e may stand in while Redis gives no answer. "No such
// user" never may: Redis being away does not make users disappear.
func (c *cache) canServe(e *entry, now time.Time) bool {
	return e != nil && e.decision.match != MatchNone && now.Sub(e.learnedAt) < c.cfg.Stale
}

// sharedChanged is about the records behind the user's own; they matter only to
// an answer the user's own record did not give.
func (c *cache) sharedChanged(e *entry) bool {
	if e.decision.match == MatchUser || e.versions.domain == nil {
		return false
	}
	return e.versions.domainVersion != e.versions.domain.n || e.versions.defaultVersion != c.defaultChanges.n
}

// recordInvalidated says whether Redis has named the very record that gave e its answer.
func (c *cache) recordInvalidated(e *entry) bool {
	switch e.decision.match {
	case MatchUser:
		return e.invalidated
	case MatchDomain:
		return e.versions.domain != nil && e.versions.domainVersion != e.versions.domain.n
	case MatchDefault:
		return e.versions.domain != nil && e.versions.defaultVersion != c.defaultChanges.n
	}
	return true
}

// currentVersions notes the current state for an answer about to be asked for.
func (c *cache) currentVersions(u identity.User) versions {
	d := c.domainChanges(u.Domain())
	return versions{epoch: c.epoch, domain: d, domainVersion: d.n, defaultVersion: c.defaultChanges.n}
}

// domainChanges finds or makes the counter of a domain. When there are too many, all are
// let go and every entry is doubted, because it holds a counter nobody advances.
func (c *cache) domainChanges(domain string) *changeCounter {
	counter := c.domains[domain]
	if counter == nil {
		if len(c.domains) >= maxDomains {
			clear(c.domains)
			c.epoch++
		}
		counter = &changeCounter{}
		c.domains[domain] = counter
	}
	return counter
}

// insert stores e in the list it belongs to, newest first, and drops the oldest
// over the bound. Users with a record of their own have a list for themselves:
// nobody can push them out by trying names.
func (c *cache) insert(e *entry) {
	target, bound := &c.sharedEntries, c.maxSharedEntries
	if e.decision.hasRecord {
		target, bound = &c.userEntries, c.maxUserEntries
	}
	if e.list == target {
		target.MoveToFront(e.elem)
		return
	}
	c.evict(e)
	e.list, e.elem = target, target.PushFront(e)
	c.entries[e.user] = e
	for target.Len() > bound {
		c.evict(target.Back().Value.(*entry))
	}
}

// evict forgets e, if it was kept.
func (c *cache) evict(e *entry) {
	if e.list == nil {
		return
	}
	e.list.Remove(e.elem)
	e.list, e.elem = nil, nil
	delete(c.entries, e.user)
}

// freshFor is how long a is fresh from now on. It varies by a tenth, so that
// what was learned together is not asked again together.
func (c *cache) freshFor(d decision) time.Duration {
	ttl := c.cfg.TTL
	if d.match == MatchNone {
		ttl = min(c.cfg.Negative, ttl)
	}
	return ttl - rand.N(ttl/10+1)
}
