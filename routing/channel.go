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

// A frozen or unreachable node is noticed within pingEvery + ioTime + quietTime
// at worst, which is below a second.
const (
	pingEvery = 250 * time.Millisecond
	quietTime = 700 * time.Millisecond // without a word, not even a reply to a ping
	minPause  = 50 * time.Millisecond  // between attempts to connect
	maxPause  = 500 * time.Millisecond
	// refusedPause follows a server that cannot or may not notify: it is asked
	// again in case it was upgraded or its ACL changed.
	refusedPause = 10 * time.Second
)

// errRefusedTracking is a server without CLIENT TRACKING, or an ACL without it.
var errRefusedTracking = errors.New("the server does not notify of changes")

// channel follows the changes on one Redis node by CLIENT TRACKING in broadcast
// mode: the node names every key with our prefixes that anybody touches, and
// says so when all keys are flushed.
type channel struct {
	// Set once.
	node  *redis.Client
	keys  keys
	to    *cache
	fault *faults
	done  chan struct{} // closed when follow has ended
	stop  context.CancelFunc

	state atomic.Value // a channelState
}

// channelState is "up" while every change is seen.
type channelState struct {
	up      bool
	refused bool
	why     error // of the last failure
}

// follow keeps the channel up until ctx ends.
func (c *channel) follow(ctx context.Context) {
	defer close(c.done)
	pause := minPause
	for ctx.Err() == nil {
		began := time.Now()
		err := c.once(ctx)
		refused := errors.Is(err, errRefusedTracking)
		c.state.Store(channelState{refused: refused, why: err})
		if time.Since(began) > time.Second {
			pause = minPause // it had worked
		}
		wait := pause/2 + rand.N(pause)
		if refused {
			wait = refusedPause
		}
		pause = min(2*pause, maxPause)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// once connects and follows until the connection is lost.
func (c *channel) once(ctx context.Context) error {
	conn, err := c.dial(ctx)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	w := newWire(conn)
	defer w.closeWith(ctx)()
	if err := c.arm(w); err != nil {
		return err
	}
	// Everything that was changed before this moment may have been missed.
	c.to.doubtAll()
	c.state.Store(channelState{up: true})
	pings := make(chan struct{})
	pinging, enough := context.WithCancel(ctx)
	go c.ping(pinging, w, pings)
	err = c.read(w)
	c.state.Store(channelState{why: err})
	enough()
	<-pings
	return err
}

// dial connects as the node's own client would: to the present primary behind
// sentinels, with TLS when it is set.
func (c *channel) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	o := c.node.Options()
	conn, err := o.Dialer(ctx, o.Network, o.Addr)
	return conn, c.fault.explainDial(err)
}

// arm logs in and asks for notifications.
func (c *channel) arm(w *wire) error {
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
		_, err := w.call(ioTime, cmd...)
		if cmd[0] == "HELLO" {
			err = c.fault.explainHello(err)
		}
		err = c.fault.explain(err)
		var no redisError
		switch {
		case errors.As(err, &no) && no.means("unknown", "noperm", "noproto"):
			return fmt.Errorf("%w: %w", errRefusedTracking, err)
		case err != nil:
			return fmt.Errorf("ask for notifications: %w", err)
		}
	}
	return nil
}

// read takes in what the node says until the connection is lost.
func (c *channel) read(w *wire) error {
	for {
		m, err := w.receive(quietTime)
		if err != nil {
			return fmt.Errorf("wait for notifications: %w", err)
		}
		switch m.kind {
		case '-', '!':
			return fmt.Errorf("wait for notifications: %w", redisError(m.text))
		case '>':
			c.take(m)
		}
	}
}

// take passes one notification on. A push of any other kind is none of ours.
func (c *channel) take(m message) {
	if len(m.list) != 2 || m.list[0].text != "invalidate" {
		return
	}
	if m.list[1].kind == '_' { // FLUSHALL or FLUSHDB
		c.to.doubtAll()
		return
	}
	names := make([]string, 0, len(m.list[1].list))
	for _, key := range m.list[1].list {
		names = append(names, key.text)
	}
	c.to.changedKeys(c.keys, names)
}

// ping keeps the node talking, so that its silence means something. It closes w
// when the node is no longer the one lookups go to, and ends with ctx or then.
func (c *channel) ping(ctx context.Context, w *wire, done chan<- struct{}) {
	defer close(done)
	defer w.conn.Close() // read reports what happened
	trip := newTripwire(c.node)
	defer trip.close()
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		if w.send(ioTime, "PING") != nil || !trip.holds(ctx) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// behindSentinels is go-redis's address of a primary that sentinels name.
const behindSentinels = "FailoverClient"

// tripwire notices that sentinels have named another primary. The old one may
// live on for a while and would keep our connection, and its silence. A client
// behind sentinels closes its pooled connections at that moment, so one of them
// is held for no other purpose.
type tripwire struct{ conn *redis.Conn }

func newTripwire(node *redis.Client) tripwire {
	if node.Options().Addr != behindSentinels {
		return tripwire{}
	}
	return tripwire{node.Conn()}
}

// holds says whether the primary is still the same.
func (t tripwire) holds(ctx context.Context) bool {
	return t.conn == nil || t.conn.Ping(ctx).Err() == nil
}

func (t tripwire) close() {
	if t.conn != nil {
		_ = t.conn.Close()
	}
}
