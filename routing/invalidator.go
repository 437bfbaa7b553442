package routing

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/sleep"
)

// Intervals at which the nodes of a cluster are listed. After a connection is lost it is
// shorter, because the slots of the lost node may have moved.
const (
	listInterval     = time.Second
	listIntervalDown = 250 * time.Millisecond
)

// invalidator keeps one invalidationConn to each node that holds routes: one server, the
// primary of Sentinel, or every primary of a cluster.
type invalidator struct {
	// Set once.
	rdb     redis.UniversalClient
	cache   *cache
	onState func(up bool) // may be nil
	log     *zap.Logger

	// Guarded by mu.
	mu          sync.Mutex
	conns       map[string]*invalidationConn // by address; nil until run begins
	listErr     error                        // why the nodes could not be listed
	loggedState string                       // state last logged
}

// InvalidationStatus is whether changes are received as they happen.
type InvalidationStatus struct {
	// State is "up", "starting", "down", "unsupported" (by the server) or "off" (Run is not
	// called). Unless it is up, a change takes effect when the ttl of a route has passed.
	State string `json:"state"`
	Nodes int    `json:"nodes"`
	Error string `json:"why,omitempty"`
}

// States of InvalidationStatus.
const (
	InvalidationUp          = "up"
	InvalidationStarting    = "starting"
	InvalidationDown        = "down"
	InvalidationUnsupported = "unsupported"
	InvalidationOff         = "off"
)

// run keeps one connection per node until ctx ends, then waits for all of them to close.
func (c *invalidator) run(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	c.mu.Lock()
	c.conns = make(map[string]*invalidationConn)
	c.mu.Unlock()
	for ctx.Err() == nil {
		nodes, err := c.listNodes(ctx)
		c.reconcile(ctx, nodes, err)
		interval := listInterval
		if c.reportState() != InvalidationUp {
			interval = listIntervalDown
		}
		_ = sleep.For(ctx, interval)
	}
	c.reconcile(ctx, map[string]*redis.Client{}, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = nil
}

// listNodes returns the nodes that hold routes, by address.
func (c *invalidator) listNodes(ctx context.Context) (map[string]*redis.Client, error) {
	switch rdb := c.rdb.(type) {
	case *redis.Client:
		return map[string]*redis.Client{rdb.Options().Addr: rdb}, nil
	case *redis.ClusterClient:
		ctx, cancel := context.WithTimeout(ctx, queryTimeout)
		defer cancel()
		var mu sync.Mutex
		nodes := make(map[string]*redis.Client)
		err := rdb.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			nodes[node.Options().Addr] = node
			return nil
		})
		o := rdb.Options()
		return nodes, (&errorExplainer{tls: o.TLSConfig != nil, credentials: o.CredentialsProvider, cluster: true}).explainHello(err)
	}
	return nil, errors.New("this kind of Redis client does not support change notifications")
}

// reconcile starts missing connections, stops those of removed nodes and waits for their end.
// After an error of listNodes it changes nothing.
func (c *invalidator) reconcile(ctx context.Context, nodes map[string]*redis.Client, err error) {
	c.mu.Lock()
	c.listErr = err
	var removed []*invalidationConn
	if err == nil {
		for addr, conn := range c.conns {
			if nodes[addr] != conn.node {
				delete(c.conns, addr)
				removed = append(removed, conn)
			}
		}
		for addr, node := range nodes {
			if c.conns[addr] == nil {
				c.conns[addr] = c.startConn(ctx, node)
			}
		}
	}
	c.mu.Unlock()
	for _, conn := range removed {
		conn.stop()
		<-conn.done
	}
}

func (c *invalidator) startConn(ctx context.Context, node *redis.Client) *invalidationConn {
	ctx, stop := context.WithCancel(ctx)
	conn := &invalidationConn{node: node, cache: c.cache, explainer: explainerOf(node.Options()), done: make(chan struct{}), stop: stop}
	conn.status.Store(connStatus{})
	go conn.run(ctx)
	return conn
}

// status combines the states of all connections. All must be up, because any node can have the
// next change.
func (c *invalidator) status() InvalidationStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := InvalidationStatus{State: InvalidationUp, Nodes: len(c.conns)}
	switch {
	case c.conns == nil:
		return InvalidationStatus{State: InvalidationOff}
	case c.listErr != nil:
		return InvalidationStatus{State: InvalidationDown, Nodes: s.Nodes, Error: c.listErr.Error()}
	case s.Nodes == 0:
		return InvalidationStatus{State: InvalidationDown, Error: "no node is known"}
	}
	for addr, conn := range c.conns {
		state := conn.status.Load().(connStatus)
		switch {
		case state.up:
			continue
		case state.err == nil:
			s.State = worseState(s.State, InvalidationStarting)
			continue
		case state.unsupported:
			s.State = worseState(s.State, InvalidationUnsupported)
		default:
			s.State = worseState(s.State, InvalidationDown)
		}
		s.Error = addr + ": " + state.err.Error()
	}
	return s
}

// worseState returns the state that is farther from up.
func worseState(a, b string) string {
	order := []string{InvalidationUp, InvalidationStarting, InvalidationDown, InvalidationUnsupported}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

// reportState logs a change of state once, and returns the state.
func (c *invalidator) reportState() string {
	s := c.status()
	c.mu.Lock()
	changed := c.loggedState != s.State && s.State != InvalidationStarting
	if changed {
		c.loggedState = s.State
	}
	c.mu.Unlock()
	if changed && c.onState != nil {
		c.onState(s.State == InvalidationUp)
	}
	switch {
	case !changed:
	case s.State == InvalidationUp:
		c.log.Info("receiving route changes from Redis", zap.Int("nodes", s.Nodes))
	default:
		c.log.Warn("route changes are not received as they happen; they take effect after the cache's ttl",
			zap.String("state", s.State), zap.String("why", s.Error))
	}
	return s.State
}
