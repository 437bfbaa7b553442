package routing

import (
	"container/list"
	"math/rand/v2"
	"time"

	"imapgate/internal/identity"
)

// entry is a cached decision for one user. The cache's lock guards it.
type entry struct {
	user     identity.User
	decision decision
	elem     *list.Element // in the list that bounds it
	list     *list.List

	learnedAt    time.Time // when Redis last gave or confirmed the decision
	expiresAt    time.Time // when it is queried again
	missingSince time.Time // when Redis first reported the deciding record missing; or zero
	invalidated  bool      // an invalidation named the user's key since
	fromDisk     bool      // from the snapshot of an earlier process
	retained     bool      // kept although Redis now disagrees
	versions     versions  // when the query began
}

// versions is the state of everything that a decision depends on, except the user's own key.
// An entry whose versions are not the current ones is queried again.
type versions struct {
	epoch          uint64 // incremented whenever a change may have been missed
	domain         *changeCounter
	domainVersion  uint64 // of the domain's record
	defaultVersion uint64 // of the default record
}

// changeCounter counts the invalidations of one shared record.
type changeCounter struct{ n uint64 }

// freshness is how far an entry can be trusted.
type freshness int

const (
	entryMissing     freshness = iota // no usable entry
	entryInvalidated                  // an invalidation named a record it depends on
	entryExpired                      // past expiresAt
	entrySuspect                      // a change may have been missed, or is being confirmed
	entryFresh
)

// freshnessOf returns the freshness of e. The checks are ordered by how urgent a query is.
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

// canServe reports whether e may be served while Redis gives no answer. "No such user" may
// not: users do not disappear because Redis is down.
func (c *cache) canServe(e *entry, now time.Time) bool {
	return e != nil && e.decision.match != MatchNone && now.Sub(e.learnedAt) < c.cfg.Cache.Stale
}

// sharedChanged reports whether a record of a domain or the default has changed that e depends
// on. An entry that the user's own record decided does not depend on them.
func (c *cache) sharedChanged(e *entry) bool {
	if e.decision.match == MatchUser || e.versions.domain == nil {
		return false
	}
	return e.versions.domainVersion != e.versions.domain.n || e.versions.defaultVersion != c.defaultChanges.n
}

// recordInvalidated reports whether an invalidation named the record that decided e.
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

// currentVersions returns the versions for a query that begins now.
func (c *cache) currentVersions(u identity.User) versions {
	d := c.domainChanges(u.Domain())
	return versions{epoch: c.epoch, domain: d, domainVersion: d.n, defaultVersion: c.defaultChanges.n}
}

// domainChanges returns the counter of a domain, and creates it if needed. At maxDomains it
// drops all counters and marks every entry suspect, because the entries hold counters that are
// no longer incremented.
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

// insert moves e to the front of its list and evicts the oldest entries over the bound. Users
// with a record of their own have a separate list, so that lookups of made-up names cannot
// evict them.
func (c *cache) insert(e *entry) {
	target, bound := &c.sharedEntries, c.maxSharedEntries
	if e.decision.match == MatchUser {
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

// evict removes e from the cache, if it is there.
func (c *cache) evict(e *entry) {
	if e.list == nil {
		return
	}
	e.list.Remove(e.elem)
	e.list, e.elem = nil, nil
	delete(c.entries, e.user)
}

// freshFor returns how long d is fresh from now on. It varies by a tenth, so that entries
// learned together do not expire together.
func (c *cache) freshFor(d decision) time.Duration {
	ttl := c.cfg.Cache.TTL
	if d.match == MatchNone {
		ttl = min(c.cfg.Cache.Negative, ttl)
	}
	return ttl - rand.N(ttl/10+1)
}
