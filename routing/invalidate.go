package routing

import (
	"strings"
	"time"

	"imapgate/internal/identity"
)

// invalidateKeys applies an invalidation: names are the keys of records that have changed.
func (c *cache) invalidateKeys(k keys, names []string) {
	userPrefix, domainPrefix := k.prefixes()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if c.sample.markInvalidated(name) {
			c.requestInspection()
		}
		if user, ok := strings.CutPrefix(name, userPrefix); ok {
			c.invalidateUser(user)
		} else if domain, ok := strings.CutPrefix(name, domainPrefix); ok {
			// A domain without a counter has no entries that depend on it.
			if counter := c.domains[domain]; counter != nil {
				counter.n++
			}
		} else if name == k.deflt() {
			c.defaultChanges.n++
		}
	}
}

func (c *cache) invalidateUser(name string) {
	u, err := c.cfg.Names.Canonicalize(name)
	if err != nil || u.String() != name {
		return // no lookup uses this key
	}
	if e := c.entries[u]; e != nil {
		e.invalidated = true
	}
	// Redis may have replied to a running query before the change.
	if q := c.queries[u]; q != nil {
		q.invalidatedDuring = true
	}
}

// suspectAll marks all entries suspect, because a change may have been missed or all keys were
// flushed. No entry is removed.
func (c *cache) suspectAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.epoch++
	c.sample.clearInvalidated()
	for _, n := range c.sample.nodes {
		n.inspectedAt = time.Time{}
	}
	c.requestInspection()
}

// suspectUser marks the entry of one user suspect.
func (c *cache) suspectUser(u identity.User) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[u]; e != nil {
		e.versions.epoch = c.epoch - 1
	}
}
