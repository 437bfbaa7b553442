// Package descriptors counts the sockets of the process against its descriptor limit,
// so that a client is refused with words before accept, or a login at a backend, fails.
//
// It does not know what the sockets are for, beyond whom they serve. A Counter is shared
// by all who open sockets; a nil one counts nothing and refuses nobody.
package descriptors

import "sync"

const (
	// Reserved are kept for what is not counted: files, Redis, auth servers, the admin
	// address, the audit log, and connections that are about to be refused.
	Reserved = 64
	// unlimited is a limit that is none.
	unlimited = 1 << 30
)

// MaxClients is how many clients there can be with a limit: a client has a connection of its
// own and one to its backend.
func MaxClients(limit int64) int64 { return max(limit-Reserved, 2) / 2 }

// Counter counts sockets. Each client has a claim to two descriptors, whether or not it
// uses both, so that a session that has lost its backend gets another connection before
// anybody new does. What the claims leave is for the gateway's own questions (extras). What only
// waits for a later use claims nothing, and is closed when room is needed.
type Counter struct {
	// Set once.
	limit     int64       // for sockets
	evictIdle func() bool // by Spare

	mu sync.Mutex
	// Guarded by mu.
	clients  int64
	backends int64 // sockets to backends, those of extras and those that wait included
	extras   int64 // those of them that are the gateway's own, and in use
}

// New makes a Counter for a process that may have so many descriptors.
func New(limit int64) *Counter { return &Counter{limit: max(limit-Reserved, 2)} }

// SetEvict has f called whenever room is needed: it closes a connection to a backend that
// only waits, and returns false when there is none. It is set before anything is counted.
func (c *Counter) SetEvict(evict func() bool) {
	if c != nil {
		c.evictIdle = evict
	}
}

// AddClient counts the connection of a client, which is open already. One that is not
// refused needs room: EvictIdle.
func (c *Counter) AddClient() {
	if c != nil {
		c.addTo(&c.clients, 1)
	}
}

// RemoveClient is for one that is closed.
func (c *Counter) RemoveClient() {
	if c != nil {
		c.addTo(&c.clients, -1)
	}
}

// IsFull reports whether the clients and the extras claim more than there is: the client that
// was counted last has to be refused.
func (c *Counter) IsFull() bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.claims() > c.limit
}

// AddBackend counts a connection to a backend that is about to be made, and makes room
// for it. It has a claim already: a client's, or that of an extra.
func (c *Counter) AddBackend() {
	if c != nil {
		c.addTo(&c.backends, 1)
		c.EvictIdle()
	}
}

// RemoveBackend is for one that is closed, or was not made.
func (c *Counter) RemoveBackend() {
	if c != nil {
		c.addTo(&c.backends, -1)
	}
}

// AddExtra claims a descriptor for a connection to a backend that no client needs. It
// returns false where that would be at the cost of one.
func (c *Counter) AddExtra() bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.claims() >= c.limit {
		return false
	}
	c.extras++
	return true
}

// RemoveExtra ends such a claim.
func (c *Counter) RemoveExtra() {
	if c != nil {
		c.addTo(&c.extras, -1)
	}
}

// claims is what may be needed at once. mu is held.
func (c *Counter) claims() int64 { return 2*c.clients + c.extras }

func (c *Counter) addTo(counter *int64, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*counter += n
}

// EvictIdle closes what only waits, until all that is open fits.
func (c *Counter) EvictIdle() {
	if c == nil || c.evictIdle == nil {
		return
	}
	for c.isOverLimit() && c.evictIdle() { // which counts what it has closed
	}
}

// isOverLimit reports whether more is open than there is room for.
func (c *Counter) isOverLimit() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clients+c.backends > c.limit
}

// Open is the number of sockets that are counted.
func (c *Counter) Open() int64 {
	if c == nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clients + c.backends
}
