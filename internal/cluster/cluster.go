// Package cluster keeps in Redis what the gateways of a fleet know together: how many
// sessions there are, failed logins, known networks, bans and uploads.
//
// It decides nothing: it does not know which failures are too many or which network is to be
// banned. All of its methods may be called by any goroutine. Each waits for Redis for at most
// Options.Wait, and returns ErrUnavailable at once while Redis is down (health.go).
//
//	cluster.go   commands to Redis, and their keys; scripts/ what runs there; uploads
//	health.go    whether Redis answers, and takes what is written
//	counts.go    sessions of all gateways, exact, and which gateways are alive
//	failures.go  failed logins, and where users have logged in
//	bans.go      bans, and the stream of their changes
package cluster

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
	"imapgate/internal/limit/ban"
	"imapgate/internal/limit/counter"
	"imapgate/internal/limit/penalty"
)

// Wait is the longest that a login waits for Redis, by default.
const Wait = 250 * time.Millisecond

// uploadKept is how long the sum of a day is kept.
const uploadKept = 48 * time.Hour

var (
	// ErrUnavailable means that Redis was not asked, because it is down.
	ErrUnavailable = errors.New("cluster: Redis does not answer")
	// ErrBudgetSpent is the cause of a context that ends because a login has waited for
	// Redis for as long as it may.
	ErrBudgetSpent = errors.New("cluster: this login has waited for Redis long enough")

	errForm = errors.New("cluster: Redis has answered in an unknown form")
)

// scriptFiles are the Lua scripts. Each says at its top what it does. Constant.
//
//go:embed scripts
var scriptFiles embed.FS

//go:embed scripts/prelude.lua
var prelude string

// readOnly lists the scripts that write nothing. Constant.
var readOnly = map[string]bool{
	"alive": true, "bans": true, "changes": true, "known": true, "networks": true, "rights": true, "sessions": true, "uploaded": true,
}

// Options configures a Cluster.
type Options struct {
	Prefix   string        // of all keys, such as "imapgate:"
	TTL      time.Duration // how long the sessions of a gateway count after its last heartbeat
	Wait     time.Duration // for an answer of Redis
	Failures *penalty.Settings
	Table    *ban.Table // which it keeps as Redis has the bans
	OnHealth func(up bool, why error)
	OnChange func(Change)
}

// Cluster is one gateway's part of a fleet.
type Cluster struct {
	// Set once.
	Options
	client  redis.UniversalClient
	keys    keys
	scripts map[string]*redis.Script
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
		health: health{failed: make(map[string]bool)}, alive: []any{"*"}, counts: newCounts(),
	}
	if _, single := client.(*redis.Client); single {
		c.batchSize = countBatch
	}
	return c
}

// loadScripts returns all scripts by name. Each begins with the prelude.
func loadScripts() map[string]*redis.Script {
	all := make(map[string]*redis.Script)
	files, _ := scriptFiles.ReadDir("scripts") // never fails: the files are part of the program
	for _, f := range files {
		text, _ := scriptFiles.ReadFile("scripts/" + f.Name())
		all[strings.TrimSuffix(f.Name(), ".lua")] = redis.NewScript(prelude + string(text))
	}
	return all
}

// IsDown reports whether this gateway counts for itself, because Redis is down.
func (c *Cluster) IsDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.health.closed
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

// writes reports whether a call changes anything in Redis.
func (call Call) writes() bool {
	return !readOnly[call.script] && (call.script != "failures" || call.args[0] != noFailure)
}

// ask runs calls in one round trip and returns a reply to each, with its own error. The error
// is the one by which Redis, or a part of it, is down or refuses to work. The end of ctx is no
// fault of Redis, unless ErrBudgetSpent is its cause.
func (c *Cluster) ask(ctx context.Context, calls ...Call) ([]*redis.Cmd, error) {
	writes, err := slices.ContainsFunc(calls, Call.writes), ctx.Err()
	if err == nil && !c.allowed(writes) {
		err = ErrUnavailable
	}
	if err != nil {
		replies := make([]*redis.Cmd, len(calls))
		for i := range replies {
			replies[i] = redis.NewCmd(ctx)
			replies[i].SetErr(err)
		}
		return replies, err
	}
	limited, cancel := context.WithTimeout(ctx, c.Wait)
	defer cancel()
	replies, failed, err := c.send(limited, calls)
	if ctx.Err() == nil || errors.Is(context.Cause(ctx), ErrBudgetSpent) {
		c.update(func(h *health) { h.record(err, writes, failed) })
	}
	return replies, err
}

// send sends calls in a pipeline. A server that does not know a script gets its text, in a
// second round trip. It returns what to probe where calls have failed, and the error of the
// first, or of the first with which Redis has answered.
func (c *Cluster) send(ctx context.Context, calls []Call) (replies []*redis.Cmd, failed []string, err error) {
	pipe, again := c.client.Pipeline(), c.client.Pipeline()
	for _, call := range calls {
		replies = append(replies, c.scripts[call.script].EvalSha(ctx, pipe, call.keys, call.args...))
	}
	_, _ = pipe.Exec(ctx) // each reply has its own error
	for i, call := range calls {
		if redis.HasErrorPrefix(replies[i].Err(), "NOSCRIPT") {
			replies[i] = c.scripts[call.script].Eval(ctx, again, call.keys, call.args...)
		}
	}
	if again.Len() > 0 {
		_, _ = again.Exec(ctx)
	}
	for i, r := range replies {
		if r.Err() == nil || isAnswer(r.Err()) {
			continue
		}
		failed = append(failed, c.keys.probe(calls[i].keys[0]))
		if err == nil || IsRefusal(r.Err()) && !IsRefusal(err) {
			err = r.Err()
		}
	}
	return replies, failed, err
}

// IsRefusal reports whether err is one with which Redis answered.
func IsRefusal(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// isAnswer reports whether an error comes from a Redis at work: a key holds something else,
// or there is no room for a ban.
func isAnswer(err error) bool {
	return redis.HasErrorPrefix(err, "NOROOM") || redis.HasErrorPrefix(err, "WRONGTYPE") ||
		redis.HasErrorPrefix(err, "ERR") && strings.Contains(err.Error(), "WRONGTYPE") // before Redis 7
}

// run runs one call and returns its reply or its error.
func (c *Cluster) run(ctx context.Context, call Call) *redis.Cmd {
	replies, _ := c.ask(ctx, call)
	return replies[0]
}

// order runs one call for an operator, who must know whether it was done.
func (c *Cluster) order(ctx context.Context, call Call) error {
	err := c.run(ctx, call).Err()
	switch {
	case err == nil, IsRefusal(err):
		return err
	case !errors.Is(err, ErrUnavailable):
		return fmt.Errorf("%w; it may have been done all the same", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health.why == nil {
		return err
	}
	return fmt.Errorf("%w: %w", err, c.health.why)
}

// checkRights returns an error if this gateway's Redis user may not run all of commands, each
// of which is followed by its key. Redis does not undo what a script did before it was
// refused, so it is asked first.
func (c *Cluster) checkRights(ctx context.Context, commands ...any) error {
	missing, err := c.run(ctx, Call{"rights", c.keys.bans()[:1], commands}).Text()
	switch {
	case IsRefusal(err):
		return fmt.Errorf("nothing was changed: %w", err)
	case err == nil && missing != "":
		return fmt.Errorf("nothing was changed: this Redis user has no permission to run %s", missing)
	}
	return nil // the order reports that Redis is down
}

// Upload adds n bytes to the uploads of a user on a day unless the sum would exceed limit. It
// returns whether it was added, and the sum.
func (c *Cluster) Upload(ctx context.Context, u identity.User, day string, n, limit int64) (fits bool, sum int64, err error) {
	words, err := c.run(ctx, Call{"upload", []string{c.keys.upload(u, day)}, []any{n, limit, uploadKept.Milliseconds()}}).Int64Slice()
	if err != nil {
		return false, 0, err
	}
	if len(words) != 2 {
		return false, 0, errForm
	}
	return words[0] == 1, words[1], nil
}

// Uploaded returns the uploads of a user on a day, in bytes.
func (c *Cluster) Uploaded(ctx context.Context, u identity.User, day string) (int64, error) {
	return c.run(ctx, Call{"uploaded", []string{c.keys.upload(u, day)}, nil}).Int64()
}

// keys makes the names of everything in Redis. No key can become another: a user has no
// colon, and a network, which may, comes last.
type keys struct{ prefix string }

func (k keys) gateways() string             { return k.prefix + "limit:gateways" }
func (k keys) rate(net netip.Prefix) string { return k.prefix + "limit:rate:" + net.String() }
func (k keys) upload(u identity.User, day string) string {
	return k.prefix + "limit:upload:" + day + ":" + u.String()
}

// sessions is where a count of sessions is.
func (k keys) sessions(of counter.Key) string {
	switch area := k.prefix + "limit:sessions:"; of.Scope {
	case counter.AllSessions:
		return area + "all"
	case counter.UserSessions:
		return area + "user:" + of.User.String()
	case counter.AddressSessions:
		return area + "net:" + of.Net.String()
	case counter.PairSessions:
		return area + "pair:" + of.User.String() + ":" + of.Net.String()
	}
	panic("cluster: a count of one gateway alone has no key")
}

// failed is where failures are counted.
func (k keys) failed(s penalty.Subject) string {
	switch area := k.prefix + "limit:failed:"; {
	case s.User.IsZero():
		return area + "net:" + s.Net.String()
	case s.Net.IsValid():
		return area + "pair:" + s.User.String() + ":" + s.Net.String()
	default:
		return area + "user:" + s.User.String()
	}
}

// known is where successful logins are noted: those of a user, and those from a network.
func (k keys) known(s penalty.Subject) string {
	if s.User.IsZero() {
		return k.prefix + "limit:lived:" + s.Net.String()
	}
	return k.prefix + "limit:good:" + s.User.String()
}

// bans are the keys of the bans. They share a slot of a Redis Cluster.
func (k keys) bans() []string {
	area := k.prefix + "ban:{all}:"
	return []string{area + "nets", area + "ends", area + "changes", area + "count"}
}

// probe returns an unused key in the same slot of a Redis Cluster as another, to which the
// same rights apply. That of such a key is the key itself.
func (k keys) probe(of string) string {
	area := "limit:probe:"
	if strings.HasPrefix(of, k.prefix+"ban:") {
		area = "ban:probe:"
	}
	return k.prefix + area + "{" + hashTag(of) + "}"
}

// hashTag returns the part of a key that determines its slot.
func hashTag(key string) string {
	_, after, found := strings.Cut(key, "{")
	if tag, _, closed := strings.Cut(after, "}"); found && closed && tag != "" {
		return tag
	}
	return key
}
