package routing

import (
	"strings"
	"time"

	"imapgate/internal/identity"
)

// changedKeys takes in the names of records that Redis says have changed.
func (c *cache) changedKeys(k keys, names []string) {
	userPrefix, domainPrefix := k.prefixes()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if c.sample.changed(name) {
			c.wake()
		}
		if user, ok := strings.CutPrefix(name, userPrefix); ok {
			c.changedUser(user)
		} else if domain, ok := strings.CutPrefix(name, domainPrefix); ok {
			// A domain no entry hangs on has no counter and needs none.
			if s := c.scopes[domain]; s != nil {
				s.changes++
			}
		} else if name == k.deflt() {
			c.deflt.changes++
		}
	}
}

func (c *cache) changedUser(name string) {
	u, err := c.cfg.Names.Canon(name)
	if err != nil || u.String() != name {
		return // nobody is ever looked up by this key
	}
	if e := c.entries[u]; e != nil {
		e.changed = true
	}
	// The open question may have been answered before the change.
	if f := c.flights[u]; f != nil {
		f.changed = true
	}
}

// doubtAll makes every entry be asked again before it is believed, because a
// change may have been missed or everything was flushed. Nothing is forgotten.
func (c *cache) doubtAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubt++
	c.sample.unname()
	for _, n := range c.sample.nodes {
		n.inspected = time.Time{}
	}
	c.wake()
}

// doubtUser does the same for one user.
func (c *cache) doubtUser(u identity.User) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[u]; e != nil {
		e.seen.doubt = c.doubt - 1
	}
}
