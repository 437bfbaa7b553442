// Package fleet lets the gateways that share a Redis act together: each knows which others
// there are, carries out the commands of operators, and sends a user to the backend address at
// which the user's other sessions are.
//
// No gateway talks to another: commands, answers and places are in Redis. Without Redis a fleet
// has one gateway. The package decides nothing: operations are functions of its user.
//
//	fleet.go     which gateways there are: heartbeats
//	commands.go  commands to all gateways, and their answers
//	places.go    at which address of a backend a user's sessions are
//	states.go    which addresses an operator has drained or disabled
package fleet

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/sanitize"
)

const (
	heartbeatInterval = 15 * time.Second
	heartbeatTTL      = 45 * time.Second
	// forgetAfter is how long the index keeps a gateway that has ended without signing off.
	forgetAfter = time.Hour
	// maxGateways bounds the gateways of a fleet.
	maxGateways = 1000
	// redisTimeout bounds one exchange that no client waits for.
	redisTimeout = 2 * time.Second
	maxText      = 255 // bytes of a name or a version from Redis
)

// ErrRedis means that Redis did not answer, so that other gateways could not be asked.
var ErrRedis = errors.New("fleet: Redis does not answer")

// Options configures a Fleet.
type Options struct {
	Prefix    string // of all keys, such as "imapgate:"
	ID        string // of this process
	Name      string // of this gateway
	Version   string
	StateFile string // where the states of addresses are kept without Redis; "" for nowhere
	// Describe returns what the heartbeat says about this gateway, besides what is above.
	Describe func() Load
	// Operations are the commands that this gateway carries out.
	Operations []Operation
	// OnAddressState is called when the state of an address has changed, by whatever gateway,
	// and for all at start.
	OnAddressState func(AddressState)
	Log            *zap.Logger
}

// Load is how busy a gateway is, and what it does.
type Load struct {
	State           string // starting, serving or draining
	API             string // the address of its API; "" for none
	Sessions        int
	LoginsPerSecond float64
}

// Gateway is one gateway of the fleet.
type Gateway struct {
	ID, Name, Version  string
	Started, Heartbeat time.Time
	Load
}

// Fleet is one gateway's part of a fleet. It is safe for concurrent use.
type Fleet struct {
	// Set once.
	Options
	redis   redis.UniversalClient // nil without Redis
	started time.Time
	beat    chan struct{}  // asks for a heartbeat at once; holds one element
	running chan struct{}  // a slot for each operation that runs for another gateway
	wg      sync.WaitGroup // the operations that run
	places  places
	states  states

	mu     sync.Mutex
	offset time.Duration // Guarded by mu. Redis' clock minus this one's.
	seen   answered      // Guarded by mu.
}

// New returns a Fleet; client is nil without Redis.
func New(client redis.UniversalClient, o Options) *Fleet {
	o.Log = cmp.Or(o.Log, zap.NewNop())
	if o.OnAddressState == nil {
		o.OnAddressState = func(AddressState) {}
	}
	return &Fleet{
		Options: o, redis: client, started: time.Now(), beat: make(chan struct{}, 1), running: make(chan struct{}, maxRunning),
		places: newPlaces(), states: states{byAddress: make(map[addressKey]AddressState)},
	}
}

// Run sends heartbeats and carries out commands until ctx is done. It then signs off, and
// returns nil.
func (f *Fleet) Run(ctx context.Context) error {
	if err := f.loadStates(ctx); err != nil {
		f.Log.Warn("the states of addresses are unknown for now", zap.Error(err))
	}
	if f.redis == nil {
		f.sweepUntil(ctx)
		return nil
	}
	f.wg.Go(func() { f.readCommands(ctx) })
	f.beatUntil(ctx)
	f.wg.Wait()
	f.signOff(context.WithoutCancel(ctx))
	return nil
}

// sweepUntil forgets old places until ctx is done.
func (f *Fleet) sweepUntil(ctx context.Context) {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			f.places.sweep(now)
		}
	}
}

// beatUntil sends heartbeats, renews places and follows the states of addresses until ctx is
// done.
func (f *Fleet) beatUntil(ctx context.Context) {
	ticker := time.NewTicker(heartbeatInterval)
	defer ticker.Stop()
	failing := false
	for {
		err := f.heartbeat(ctx)
		if err == nil {
			err = f.renewPlaces(ctx)
		}
		if err == nil {
			err = f.loadStates(ctx)
		}
		if ctx.Err() == nil && (err != nil) != failing {
			failing = err != nil
			if failing {
				f.Log.Warn("the fleet cannot be reached: this gateway acts alone", zap.Error(err))
			} else {
				f.Log.Info("the fleet is reached again")
			}
		}
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			f.places.sweep(now)
		case <-f.beat:
		}
	}
}

// Announce sends a heartbeat soon, because this gateway's state has changed.
func (f *Fleet) Announce() {
	select {
	case f.beat <- struct{}{}:
	default: // one is due
	}
}

// The keys.
func (f *Fleet) gatewayKey(id string) string { return f.Prefix + "gateway:" + id }
func (f *Fleet) indexKey() string            { return f.Prefix + "gateways" }

// heartbeat announces this gateway, and compares its clock with that of Redis.
func (f *Fleet) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	load, now := f.Describe(), time.Now()
	pipe := f.redis.Pipeline()
	pipe.HSet(ctx, f.gatewayKey(f.ID), "name", f.Name, "version", f.Version, "state", load.State, "api", load.API, "sessions", load.Sessions,
		"logins_per_second", load.LoginsPerSecond, "started", f.started.UnixMilli(), "heartbeat", now.UnixMilli())
	pipe.PExpire(ctx, f.gatewayKey(f.ID), heartbeatTTL)
	pipe.ZAdd(ctx, f.indexKey(), redis.Z{Score: float64(now.UnixMilli()), Member: f.ID})
	pipe.ZRemRangeByScore(ctx, f.indexKey(), "-inf", strconv.FormatInt(now.Add(-forgetAfter).UnixMilli(), 10))
	clock := pipe.Time(ctx)
	if _, err := pipe.Exec(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.offset = clock.Val().Sub(now)
	return nil
}

// redisNow returns the time on the clock of Redis.
func (f *Fleet) redisNow() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Now().Add(f.offset)
}

// signOff removes this gateway.
func (f *Fleet) signOff(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	pipe := f.redis.Pipeline()
	pipe.Del(ctx, f.gatewayKey(f.ID))
	pipe.ZRem(ctx, f.indexKey(), f.ID)
	_, _ = pipe.Exec(ctx) // otherwise it expires
}

// self returns this gateway.
func (f *Fleet) self() Gateway {
	return Gateway{ID: f.ID, Name: f.Name, Version: f.Version, Started: f.started, Heartbeat: time.Now(), Load: f.Describe()}
}

// List returns the live gateways of the fleet, this one first. With an error, which is ErrRedis
// or wraps it, it returns this one only.
func (f *Fleet) List(ctx context.Context) ([]Gateway, error) {
	all := []Gateway{f.self()}
	if f.redis == nil {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	ids, err := f.redis.ZRevRange(ctx, f.indexKey(), 0, maxGateways-1).Result()
	if err != nil {
		return all, fmt.Errorf("%w: %w", ErrRedis, err)
	}
	pipe := f.redis.Pipeline()
	replies := make(map[string]*redis.MapStringStringCmd)
	for _, id := range ids {
		if id != f.ID && len(id) <= maxText {
			replies[id] = pipe.HGetAll(ctx, f.gatewayKey(id))
		}
	}
	if len(replies) > 0 {
		if _, err := pipe.Exec(ctx); err != nil {
			return all, fmt.Errorf("%w: %w", ErrRedis, err)
		}
	}
	for id, reply := range replies {
		if fields := reply.Val(); len(fields) > 0 {
			all = append(all, newGateway(id, fields))
		}
	}
	slices.SortFunc(all[1:], func(a, b Gateway) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// newGateway returns the gateway with these fields in Redis, which may contain anything.
func newGateway(id string, fields map[string]string) Gateway {
	text := func(name string) string { return sanitize.Line(fields[name], maxText) }
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(fields[name], 10, 64) // 0 if it is none
		return n
	}
	perSecond, _ := strconv.ParseFloat(fields["logins_per_second"], 64) // 0 if it is none
	g := Gateway{
		ID: sanitize.Line(id, maxText), Name: text("name"), Version: text("version"),
		Started: time.UnixMilli(number("started")), Heartbeat: time.UnixMilli(number("heartbeat")),
		Load: Load{State: text("state"), API: text("api"), Sessions: int(number("sessions")), LoginsPerSecond: perSecond},
	}
	if !slices.Contains([]string{"starting", "serving", "draining"}, g.State) {
		g.State = "starting"
	}
	if !(perSecond >= 0 && perSecond < 1e9) { // also NaN
		g.LoginsPerSecond = 0
	}
	return g
}

// newID returns a random id of a command.
func newID() string { return rand.Text() }
