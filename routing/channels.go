package routing

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
)

// How often the nodes of a cluster are listed: soon after a channel is lost,
// because the lost node's slots may have moved.
const (
	listEvery     = time.Second
	listEveryDown = 250 * time.Millisecond
)

// channels are the channels of all nodes that hold routes: one server, the
// primary behind sentinels, or every primary of a cluster.
type channels struct {
	// Set once.
	rdb  redis.UniversalClient
	keys keys
	to   *cache
	told func(up bool) // may be nil
	log  *zap.Logger

	// Guarded by mu.
	mu     sync.Mutex
	nodes  map[string]*channel // by address; nil until run begins
	listed error               // why the nodes could not be listed
	said   string              // the state last logged
}

// Channel is whether changes are seen as they happen.
type Channel struct {
	// State is "up", "starting", "down", "unsupported" (the server cannot notify)
	// or "off" (nothing follows changes in this process). Unless it is up, a
	// change takes effect when the ttl is over.
	State string `json:"state"`
	Nodes int    `json:"nodes"`
	Why   string `json:"why,omitempty"`
}

// States of a Channel.
const (
	ChannelUp          = "up"
	ChannelStarting    = "starting"
	ChannelDown        = "down"
	ChannelUnsupported = "unsupported"
	ChannelOff         = "off"
)

func newChannels(rdb redis.UniversalClient, k keys, to *cache, log *zap.Logger) *channels {
	return &channels{rdb: rdb, keys: k, to: to, log: log}
}

// run keeps one channel per node until ctx ends, then waits for all of them.
func (c *channels) run(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	c.mu.Lock()
	c.nodes = make(map[string]*channel)
	c.mu.Unlock()
	for ctx.Err() == nil {
		nodes, err := c.list(ctx)
		c.settle(ctx, nodes, err)
		every := listEvery
		if c.report() != ChannelUp {
			every = listEveryDown
		}
		select {
		case <-time.After(every):
		case <-ctx.Done():
		}
	}
	c.settle(ctx, map[string]*redis.Client{}, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = nil
}

// list gives the nodes that hold routes, by address.
func (c *channels) list(ctx context.Context) (map[string]*redis.Client, error) {
	switch rdb := c.rdb.(type) {
	case *redis.Client:
		return map[string]*redis.Client{rdb.Options().Addr: rdb}, nil
	case *redis.ClusterClient:
		ctx, cancel := context.WithTimeout(ctx, askTime)
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
		username, password := credentialsOf(o.CredentialsProvider)
		return nodes, (&faults{tls: o.TLSConfig != nil, username: username != "", password: password != "", cluster: true}).explainHello(err)
	}
	return nil, errors.New("changes cannot be followed through this kind of client")
}

// settle starts the channels that are missing and ends those of nodes that are
// gone, and waits for these. After an error everything stays as it is.
func (c *channels) settle(ctx context.Context, nodes map[string]*redis.Client, err error) {
	c.mu.Lock()
	c.listed = err
	var gone []*channel
	if err == nil {
		for addr, ch := range c.nodes {
			if nodes[addr] != ch.node {
				delete(c.nodes, addr)
				gone = append(gone, ch)
			}
		}
		for addr, node := range nodes {
			if c.nodes[addr] == nil {
				c.nodes[addr] = c.start(ctx, node)
			}
		}
	}
	c.mu.Unlock()
	for _, ch := range gone {
		ch.stop()
		<-ch.done
	}
}

func (c *channels) start(ctx context.Context, node *redis.Client) *channel {
	ctx, stop := context.WithCancel(ctx)
	ch := &channel{node: node, keys: c.keys, to: c.to, fault: faultsOf(node.Options()), done: make(chan struct{}), stop: stop}
	ch.state.Store(channelState{})
	go ch.follow(ctx)
	return ch
}

// status sums the channels up: every one must be up, because any could be the one
// that holds the next change.
func (c *channels) status() Channel {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Channel{State: ChannelUp, Nodes: len(c.nodes)}
	switch {
	case c.nodes == nil:
		return Channel{State: ChannelOff}
	case c.listed != nil:
		return Channel{State: ChannelDown, Nodes: s.Nodes, Why: c.listed.Error()}
	case s.Nodes == 0:
		return Channel{State: ChannelDown, Why: "no node is known"}
	}
	for addr, ch := range c.nodes {
		state := ch.state.Load().(channelState)
		switch {
		case state.up:
			continue
		case state.why == nil:
			s.State = worse(s.State, ChannelStarting)
			continue
		case state.refused:
			s.State = worse(s.State, ChannelUnsupported)
		default:
			s.State = worse(s.State, ChannelDown)
		}
		s.Why = addr + ": " + state.why.Error()
	}
	return s
}

// worse is the one of two states that is farther from up.
func worse(a, b string) string {
	order := []string{ChannelUp, ChannelStarting, ChannelDown, ChannelUnsupported}
	return order[max(slices.Index(order, a), slices.Index(order, b))]
}

// report logs a change of state once, and gives the state.
func (c *channels) report() string {
	s := c.status()
	c.mu.Lock()
	news := c.said != s.State && s.State != ChannelStarting
	if news {
		c.said = s.State
	}
	c.mu.Unlock()
	if news && c.told != nil {
		c.told(s.State == ChannelUp)
	}
	switch {
	case !news:
	case s.State == ChannelUp:
		c.log.Info("route changes are followed", zap.Int("nodes", s.Nodes))
	default:
		c.log.Warn("route changes are not seen as they happen; they take effect after the cache's ttl",
			zap.String("state", s.State), zap.String("why", s.Why))
	}
	return s.State
}
