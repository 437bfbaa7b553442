// Package descriptors counts the process's sockets against its descriptor limit. So a
// client is refused with an answer, before accept or a backend login fails for lack of
// descriptors.
//
// The package does not know what a socket is for, beyond client, backend or extra. All code
// that opens sockets shares one Counter.
package descriptors

import "sync"

const (
	// Reserved descriptors are left for what is not counted: files, Redis, auth servers,
	// the admin address, the audit log and connections about to be refused.
	Reserved = 64
	// Unlimited stands for no limit.
	Unlimited = 1 << 30
)

// MaxClients returns how many clients fit into a descriptor limit: each client needs a
// connection of its own and one to its backend.
func MaxClients(limit int64) int64 { return max(limit-Reserved, 2) / 2 }

// Counter counts sockets. Each client claims two descriptors, used or not, so that a
// session that has lost its backend can reconnect before new clients connect. The gateway's
// own connections (extras) use what is left. Idle pooled connections claim nothing and are
// closed when descriptors are needed.
type Counter struct {
	// Set once.
	limit     int64       // sockets at most
	evictIdle func() bool // set by SetEvict

	mu sync.Mutex
	// Guarded by mu. The claims are 2*clients + extras; clients + backends are open.
	clients  int64
	backends int64 // sockets to backends, including extras and idle ones
	extras   int64 // of backends, the gateway's own that are in use
}

// New returns a Counter for a process with a descriptor limit.
func New(limit int64) *Counter {
	return &Counter{limit: max(limit-Reserved, 2), evictIdle: func() bool { return false }}
}

// SetEvict sets the function that frees descriptors. evict closes an idle connection to a
// backend, and returns false if no connection is idle. SetEvict is called before anything
// is counted.
func (c *Counter) SetEvict(evict func() bool) { c.evictIdle = evict }

// AddClient counts the connection of a client, which is already open. It returns false if
// clients and extras then claim more than the limit, and the client must be refused. If it
// is not refused, EvictIdle must make room for it.
func (c *Counter) AddClient() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients++
	return 2*c.clients+c.extras <= c.limit
}

// RemoveClient uncounts a client's connection that is closed.
func (c *Counter) RemoveClient() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clients--
}

// AddBackend counts a connection to a backend before it is opened, and makes room for it.
// The connection already has a claim: a client's or an extra's.
func (c *Counter) AddBackend() {
	c.mu.Lock()
	c.backends++
	c.mu.Unlock()
	c.EvictIdle()
}

// RemoveBackend uncounts a connection to a backend that is closed, or was not opened.
func (c *Counter) RemoveBackend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backends--
}

// AddExtra claims a descriptor for a backend connection of the gateway's own. It returns
// false if clients need the descriptor.
func (c *Counter) AddExtra() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if 2*c.clients+c.extras >= c.limit {
		return false
	}
	c.extras++
	return true
}

// RemoveExtra releases the claim of AddExtra.
func (c *Counter) RemoveExtra() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.extras--
}

// EvictIdle closes idle backend connections until the open sockets fit the limit.
func (c *Counter) EvictIdle() {
	for c.Open() > c.limit && c.evictIdle() { // evictIdle calls RemoveBackend
	}
}

// Open returns the number of counted sockets.
func (c *Counter) Open() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clients + c.backends
}
