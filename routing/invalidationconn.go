package routing

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/sleep"
)

// A frozen or unreachable node is detected within pingInterval + ioTimeout + silenceTimeout,
// which is below a second.
const (
	pingInterval   = 250 * time.Millisecond
	silenceTimeout = 700 * time.Millisecond // without data, not even a reply to PING
	minBackoff     = 50 * time.Millisecond  // between attempts to connect
	maxBackoff     = 500 * time.Millisecond
	// unsupportedBackoff applies if a server lacks CLIENT TRACKING or the right to it. The
	// gateway tries again in case it was upgraded or its ACL changed.
	unsupportedBackoff = 10 * time.Second
)

// errNoTracking means that the server lacks CLIENT TRACKING, or the ACL user the right to it.
var errNoTracking = errors.New("the server does not support change notifications")

// invalidationConn receives the changes on one Redis node with CLIENT TRACKING in broadcast
// mode: the node sends the name of every changed key with our prefixes, and a notification
// when all keys are flushed.
type invalidationConn struct {
	// Set once.
	node      *redis.Client
	cache     *cache
	explainer *errorExplainer
	done      chan struct{} // closed when run has returned
	stop      context.CancelFunc

	status atomic.Value // a connStatus
}

// connStatus is the state of an invalidationConn. up means that every change is received.
type connStatus struct {
	up          bool
	unsupported bool
	err         error // last failure
}

// run keeps the connection up until ctx ends.
func (c *invalidationConn) run(ctx context.Context) {
	defer close(c.done)
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := c.connectAndRead(ctx)
		unsupported := errors.Is(err, errNoTracking)
		c.status.Store(connStatus{unsupported: unsupported, err: err})
		if time.Since(began) > time.Second {
			backoff = minBackoff // the connection was up for a while
		}
		wait := backoff/2 + rand.N(backoff)
		if unsupported {
			wait = unsupportedBackoff
		}
		backoff = min(2*backoff, maxBackoff)
		_ = sleep.For(ctx, wait)
	}
}

// connectAndRead connects and receives changes until the connection is lost.
func (c *invalidationConn) connectAndRead(ctx context.Context) error {
	nc, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	conn := newRESPConn(nc)
	defer conn.closeOnDone(ctx)()
	if err := c.enableTracking(conn); err != nil {
		return err
	}
	// Changes before this moment may have been missed.
	c.cache.suspectAll()
	c.status.Store(connStatus{up: true})
	pingDone := make(chan struct{})
	pingCtx, stopPing := context.WithCancel(ctx)
	go c.ping(pingCtx, conn, pingDone)
	err = c.readMessages(conn)
	c.status.Store(connStatus{err: err})
	stopPing()
	<-pingDone
	return err
}

// dial connects as the node's own client does: to the current primary with Sentinel, and with
// TLS if configured.
func (c *invalidationConn) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	o := c.node.Options()
	conn, err := o.Dialer(ctx, o.Network, o.Addr)
	return conn, c.explainer.explainDial(err)
}

// enableTracking logs in and enables notifications.
func (c *invalidationConn) enableTracking(conn *respConn) error {
	hello := []string{"HELLO", "3"}
	if user, password := credentialsOf(c.node.Options().CredentialsProvider); password != "" {
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, password)
	}
	user, domain := c.cache.keys.prefixes()
	for _, cmd := range [][]string{
		hello,
		{"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", user, "PREFIX", domain, "PREFIX", c.cache.keys.deflt()},
	} {
		_, err := conn.call(ioTimeout, cmd...)
		if cmd[0] == "HELLO" {
			err = c.explainer.explainHello(err)
		}
		err = c.explainer.explain(err)
		var reply redisError
		switch {
		case errors.As(err, &reply) && reply.mentions("unknown", "noperm", "noproto"):
			return fmt.Errorf("%w: %w", errNoTracking, err)
		case err != nil:
			return fmt.Errorf("enable change notifications: %w", err)
		}
	}
	return nil
}

// readMessages handles messages from the node until the connection is lost.
func (c *invalidationConn) readMessages(conn *respConn) error {
	for {
		m, err := conn.receive(silenceTimeout)
		if err != nil {
			return fmt.Errorf("receive change notifications: %w", err)
		}
		switch m.respType {
		case '-', '!':
			return fmt.Errorf("receive change notifications: %w", redisError(m.text))
		case '>':
			c.handlePush(m)
		}
	}
}

// handlePush applies one notification. Pushes of other kinds are ignored.
func (c *invalidationConn) handlePush(m message) {
	if len(m.list) != 2 || m.list[0].text != "invalidate" {
		return
	}
	if m.list[1].respType == '_' { // FLUSHALL or FLUSHDB
		c.cache.suspectAll()
		return
	}
	names := make([]string, 0, len(m.list[1].list))
	for _, key := range m.list[1].list {
		names = append(names, key.text)
	}
	c.cache.invalidateKeys(names)
}

// ping sends PING at every pingInterval, so that silence means a lost node. It ends with ctx,
// and closes conn when it ends. It also ends when Sentinel names another primary.
func (c *invalidationConn) ping(ctx context.Context, conn *respConn, done chan<- struct{}) {
	defer close(done)
	defer conn.conn.Close() // readMessages reports the cause
	// The old primary may stay up for a while without sending changes. A client of Sentinel
	// closes its pooled connections at a failover, so one of them is held to notice it.
	var primary *redis.Conn // nil without Sentinel
	if c.node.Options().Addr == failoverAddr {
		primary = c.node.Conn()
		defer primary.Close()
	}
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		if conn.send(ioTimeout, "PING") != nil || primary != nil && primary.Ping(ctx).Err() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// failoverAddr is the address that go-redis gives to a primary named by Sentinel.
const failoverAddr = "FailoverClient"
