package routing

import (
	"strings"
	"time"

	"imapgate/internal/identity"
)

// invalidateKeys takes in the names of records that Redis says have changed.
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
			// A domain no entry hangs on has no counter and needs none.
			if s := c.domains[domain]; s != nil {
				s.n++
			}
		} else if name == k.deflt() {
			c.defaultChanges.n++
		}
	}
}

func (c *cache) invalidateUser(name string) {
	u, err := c.cfg.Names.Canonicalize(name)
	if err != nil || u.String() != name {
		return // nobody is ever looked up by this key
	}
	if e := c.entries[u]; e != nil {
		e.invalidated = true
	}
	// The open question may have been answered before the change.
	if f := c.queries[u]; f != nil {
		f.invalidatedDuring = true
	}
}

// suspectAll makes every entry be asked again before it is believed, because a
// change may have been missed or everything was flushed. Nothing is forgotten.
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

// suspectUser does the same for one user.
func (c *cache) suspectUser(u identity.User) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[u]; e != nil {
		e.versions.epoch = c.epoch - 1
	}
}
