// Package cluster keeps in Redis what the gateways of a fleet know together: how many
// sessions there are, failed logins, known networks, bans and uploads.
//
// It decides nothing: it does not know which failures are too many or which network is to be
// banned. All of its methods may be called by any goroutine. Each waits for Redis for at most
// Options.Wait, and returns ErrUnavailable at once while Redis is down (health.go).
//
//	cluster.go   commands to Redis; keys.go their keys; scripts.go and scripts/ what runs there
//	health.go    whether Redis answers, and takes what is written
//	counts.go    sessions of all gateways, exact; heartbeat.go which gateways are alive
//	failures.go  failed logins, and where users have logged in
//	bans.go      bans, and the stream of their changes
package cluster

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	randv2 "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
)

// Wait is the longest that a login waits for Redis, by default.
const Wait = 250 * time.Millisecond

var (
	// ErrUnavailable means that Redis was not asked, because it is down.
	ErrUnavailable = errors.New("cluster: Redis does not answer")
	// ErrBudgetSpent is the cause of a context that ends because a login has waited for
	// Redis for as long as it may.
	ErrBudgetSpent = errors.New("cluster: this login has waited for Redis long enough")

	errForm = errors.New("cluster: Redis has answered in an unknown form")
)

// Options configures a Cluster.
type Options struct {
	Prefix   string        // of all keys, such as "imapgate:"
	TTL      time.Duration // how long the sessions of a gateway count after its last heartbeat
	Wait     time.Duration // for an answer of Redis
	MaxBans  int           // that Redis has
	OnChange func(up bool, why error)
}

// Cluster is one gateway's part of a fleet.
type Cluster struct {
	// Set once.
	Options
	client  redis.UniversalClient
	keys    keys
	scripts scripts
	self    string // the name of this gateway, for as long as it runs
	counts  counts

	// batchSize is how many keys a script may have. In a Redis Cluster it is 1, because each
	// key may be at another server.
	batchSize int

	// Guarded by mu.
	mu     sync.Mutex
	health health
	alive  []any // the other gateways, as of the last heartbeat; "*" before the first
	fleet  int   // how many gateways there were then, this one included
}

// New returns a Cluster that uses client.
func New(client redis.UniversalClient, o Options) *Cluster {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	c := &Cluster{
		Options: o, client: client, keys: keys{o.Prefix}, scripts: loadScripts(), self: hex.EncodeToString(id[:]), batchSize: 1,
		health: health{failed: make(map[string]uint64)}, alive: []any{"*"}, counts: newCounts(),
	}
	if _, single := client.(*redis.Client); single {
		c.batchSize = countBatch
	}
	return c
}

// IsDown reports whether this gateway counts for itself, because Redis is down.
func (c *Cluster) IsDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.health.down()
}

// Gateways returns how many gateways there were at the last heartbeat, this one included.
func (c *Cluster) Gateways() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fleet
}

// Call is one script to be run.
type Call struct {
	script string
	keys   []string
	args   []any
}

// ask runs calls in one round trip and returns a reply to each, with its own error. There are
// none if Redis is not asked. The error is the first by which Redis, or a part of it, is down
// or refuses to work. The end of ctx is no fault of Redis.
func (c *Cluster) ask(ctx context.Context, calls ...Call) ([]*redis.Cmd, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	writes := slices.ContainsFunc(calls, func(call Call) bool { return !c.scripts[call.script].readOnly })
	if !c.allowed(writes) {
		return nil, ErrUnavailable
	}
	limited, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	replies, err := c.send(limited, calls)
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), ErrBudgetSpent) {
		c.record(err, writes)
	}
	return replies, err
}

// send sends calls in a pipeline. A server that does not know a script gets its text, in a
// second round trip.
func (c *Cluster) send(ctx context.Context, calls []Call) ([]*redis.Cmd, error) {
	replies, pipe := make([]*redis.Cmd, len(calls)), c.client.Pipeline()
	for i, call := range calls {
		replies[i] = pipe.EvalSha(ctx, c.scripts[call.script].hash, call.keys, call.args...)
	}
	_, _ = pipe.Exec(ctx) // each reply has its own error
	again := c.client.Pipeline()
	for i, call := range calls {
		if redis.HasErrorPrefix(replies[i].Err(), "NOSCRIPT") {
			replies[i] = again.Eval(ctx, c.scripts[call.script].text, call.keys, call.args...)
		}
	}
	if again.Len() > 0 {
		_, _ = again.Exec(ctx)
	}
	var failed *outage
	for i, r := range replies {
		if err := r.Err(); err != nil && !isAnswer(err) {
			failed = failed.add(calls[i].keys[0], err)
		}
	}
	return replies, failed.orNil()
}

// askOne runs one call and returns its reply or its error.
func (c *Cluster) askOne(ctx context.Context, call Call) (*redis.Cmd, error) {
	r, err := c.ask(ctx, call)
	if err != nil {
		return nil, err
	}
	return r[0], r[0].Err()
}

// order runs one call for an operator, who must know whether it was done.
func (c *Cluster) order(ctx context.Context, call Call) error {
	_, err := c.askOne(ctx, call)
	var reply redis.Error
	switch {
	case errors.Is(err, ErrUnavailable):
		return c.unavailable()
	case err == nil, errors.As(err, &reply):
		return err
	}
	return fmt.Errorf("%w; it may have been done all the same", err)
}

// checkRights returns an error if this gateway's Redis user may not run all of commands, each
// of which is followed by its key. Redis does not undo what a script did before it was
// refused, so it is asked first.
func (c *Cluster) checkRights(ctx context.Context, commands ...any) error {
	r, err := c.askOne(ctx, Call{"rights", c.keys.bans()[:1], commands})
	var reply redis.Error
	switch {
	case errors.As(err, &reply):
		return fmt.Errorf("nothing was changed: %w", err)
	case err != nil:
		return nil // the order reports that Redis is down
	}
	if missing, _ := r.Text(); missing != "" {
		return fmt.Errorf("nothing was changed: this Redis user has no permission to run %s", missing)
	}
	return nil
}

// unavailable returns ErrUnavailable with the reason.
func (c *Cluster) unavailable() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health.why == nil {
		return ErrUnavailable
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, c.health.why)
}

// isAnswer reports whether an error comes from a Redis at work: a key holds something else,
// or there is no room for a ban.
func isAnswer(err error) bool {
	return redis.HasErrorPrefix(err, "NOROOM") || redis.HasErrorPrefix(err, "WRONGTYPE") ||
		redis.HasErrorPrefix(err, "ERR") && strings.Contains(err.Error(), "WRONGTYPE") // before Redis 7
}

// integers returns the integers of a reply, if there are n.
func integers(reply *redis.Cmd, n int) ([]int64, error) {
	words, err := reply.Int64Slice()
	if err == nil && len(words) != n {
		return nil, errForm
	}
	return words, err
}

// Upload adds n bytes to the uploads of a user on a day unless the sum would exceed limit. It
// returns whether it was added, and the sum.
func (c *Cluster) Upload(ctx context.Context, u identity.User, day string, n, limit int64) (fits bool, sum int64, err error) {
	r, err := c.askOne(ctx, Call{"upload", []string{c.keys.upload(u, day)}, []any{n, limit, uploadKept.Milliseconds()}})
	if err != nil {
		return false, 0, err
	}
	words, err := integers(r, 2)
	if err != nil {
		return false, 0, err
	}
	return words[0] == 1, words[1], nil
}

// Uploaded returns the uploads of a user on a day, in bytes.
func (c *Cluster) Uploaded(ctx context.Context, u identity.User, day string) (int64, error) {
	r, err := c.askOne(ctx, Call{"uploaded", []string{c.keys.upload(u, day)}, nil})
	if err != nil {
		return 0, err
	}
	return r.Int64()
}

// uploadKept is how long the sum of a day is kept.
const uploadKept = 48 * time.Hour

// pause waits for d, a fifth more or less, so that gateways do not act together. It reports
// whether ctx has not ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d*4/5 + randv2.N(d*2/5+1))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}
