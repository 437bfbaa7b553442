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
)

// A frozen or unreachable node is noticed within pingInterval + ioTimeout + silenceTimeout
// at worst, which is below a second.
const (
	pingInterval   = 250 * time.Millisecond
	silenceTimeout = 700 * time.Millisecond // without a word, not even a reply to a ping
	minBackoff     = 50 * time.Millisecond  // between attempts to connect
	maxBackoff     = 500 * time.Millisecond
	// unsupportedBackoff follows a server that cannot or may not notify: it is asked
	// again in case it was upgraded or its ACL changed.
	unsupportedBackoff = 10 * time.Second
)

// errNoTracking is a server without CLIENT TRACKING, or an ACL without it.
var errNoTracking = errors.New("the server does not notify of changes")

// invalidationConn follows the changes on one Redis node by CLIENT TRACKING in broadcast
// mode: the node names every key with our prefixes that anybody touches, and
// says so when all keys are flushed.
type invalidationConn struct {
	// Set once.
	node      *redis.Client
	keys      keys
	cache     *cache
	explainer *errorExplainer
	done      chan struct{} // closed when follow has ended
	stop      context.CancelFunc

	status atomic.Value // a connStatus
}

// connStatus is "up" while every change is seen.
type connStatus struct {
	up          bool
	unsupported bool
	err         error // of the last failure
}

// run keeps the channel up until ctx ends.
func (c *invalidationConn) run(ctx context.Context) {
	defer close(c.done)
	backoff := minBackoff
	for ctx.Err() == nil {
		began := time.Now()
		err := c.connectAndRead(ctx)
		unsupported := errors.Is(err, errNoTracking)
		c.status.Store(connStatus{unsupported: unsupported, err: err})
		if time.Since(began) > time.Second {
			backoff = minBackoff // it had worked
		}
		wait := backoff/2 + rand.N(backoff)
		if unsupported {
			wait = unsupportedBackoff
		}
		backoff = min(2*backoff, maxBackoff)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// connectAndRead connects and follows until the connection is lost.
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
	// Everything that was changed before this moment may have been missed.
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

// dial connects as the node's own client would: to the present primary behind
// sentinels, with TLS when it is set.
func (c *invalidationConn) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	o := c.node.Options()
	conn, err := o.Dialer(ctx, o.Network, o.Addr)
	return conn, c.explainer.explainDial(err)
}

// enableTracking logs in and asks for notifications.
func (c *invalidationConn) enableTracking(conn *respConn) error {
	hello := []string{"HELLO", "3"}
	if user, password := credentialsOf(c.node.Options().CredentialsProvider); password != "" {
		if user == "" {
			user = "default"
		}
		hello = append(hello, "AUTH", user, password)
	}
	user, domain := c.keys.prefixes()
	for _, cmd := range [][]string{
		hello,
		{"CLIENT", "TRACKING", "ON", "BCAST", "PREFIX", user, "PREFIX", domain, "PREFIX", c.keys.deflt()},
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
			return fmt.Errorf("ask for notifications: %w", err)
		}
	}
	return nil
}

// readMessages takes in what the node says until the connection is lost.
func (c *invalidationConn) readMessages(conn *respConn) error {
	for {
		m, err := conn.receive(silenceTimeout)
		if err != nil {
			return fmt.Errorf("wait for notifications: %w", err)
		}
		switch m.respType {
		case '-', '!':
			return fmt.Errorf("wait for notifications: %w", redisError(m.text))
		case '>':
			c.handlePush(m)
		}
	}
}

// handlePush passes one notification on. A push of any other kind is none of ours.
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
	c.cache.invalidateKeys(c.keys, names)
}

// ping keeps the node talking, so that its silence means something. It closes w
// when the node is no longer the one lookups go to, and ends with ctx or then.
func (c *invalidationConn) ping(ctx context.Context, conn *respConn, done chan<- struct{}) {
	defer close(done)
	defer conn.conn.Close() // read reports what happened
	detector := newFailoverDetector(c.node)
	defer detector.close()
	tick := time.NewTicker(pingInterval)
	defer tick.Stop()
	for {
		if conn.send(ioTimeout, "PING") != nil || !detector.samePrimary(ctx) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// failoverAddr is go-redis's address of a primary that sentinels name.
const failoverAddr = "FailoverClient"

// failoverDetector notices that sentinels have named another primary. The old one may
// live on for a while and would keep our connection, and its silence. A client
// behind sentinels closes its pooled connections at that moment, so one of them
// is held for no other purpose.
type failoverDetector struct{ conn *redis.Conn }

func newFailoverDetector(node *redis.Client) failoverDetector {
	if node.Options().Addr != failoverAddr {
		return failoverDetector{}
	}
	return failoverDetector{node.Conn()}
}

// samePrimary says whether the primary is still the same.
func (d failoverDetector) samePrimary(ctx context.Context) bool {
	return d.conn == nil || d.conn.Ping(ctx).Err() == nil
}

func (d failoverDetector) close() {
	if d.conn != nil {
		_ = d.conn.Close()
	}
}
