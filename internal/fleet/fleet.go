// Package fleet lets the gateways that share a Redis act together: each knows which others
// there are, carries out the commands of operators, and sends a user to the backend address at
// which the user's other sessions are.
//
// No gateway talks to another: commands, answers and places are in Redis. Without Redis a fleet
// has one gateway. The package decides nothing: operations are functions of its user.
//
//	fleet.go      a gateway's part of the fleet; heartbeats
//	gateways.go   which gateways there are
//	commands.go   what all gateways are asked to do, and what each does
//	answers.go    what they have answered
//	reader.go     the stream of commands
//	places.go     at which address of a backend a user's sessions are
//	states.go     which addresses an operator has drained or disabled
//	statefile.go  the same without Redis
//	scripts/      what runs in Redis
package fleet

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
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
	// waitTimeout bounds one exchange that a login or an operator waits for.
	waitTimeout = 250 * time.Millisecond
	maxText     = 255 // bytes of a name or a version from Redis
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
	// AnswerTimeout is how long Ask waits for other gateways. Default: AnswerTimeout.
	AnswerTimeout time.Duration
	// Describe returns what the heartbeat says about this gateway, besides what is above.
	Describe func() Load
	// Operations are the commands that this gateway carries out.
	Operations []Operation
	// OnAddressState is called when the state of an address has changed, by whatever gateway,
	// and for all at start. Calls are in order. It must not change the state of an address.
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

// Fleet is one gateway's part of a fleet. It is safe for concurrent use.
type Fleet struct {
	// Set once.
	Options
	redis   redis.UniversalClient // nil without Redis
	started time.Time
	beat    chan struct{}  // asks for a heartbeat at once; holds one element
	running chan struct{}  // a slot for each operation that runs for another gateway
	wg      sync.WaitGroup // the reader of commands, and the operations that run
	// isReading is set when the reader of commands knows where it begins. Only then is the
	// gateway announced: before, it would miss what the others expect it to do.
	isReading atomic.Bool
	seen      answered
	places    places
	states    states
}

// New returns a Fleet; client is nil without Redis.
func New(client redis.UniversalClient, o Options) *Fleet {
	o.Log = cmp.Or(o.Log, zap.NewNop())
	o.AnswerTimeout = cmp.Or(o.AnswerTimeout, AnswerTimeout)
	if o.OnAddressState == nil {
		o.OnAddressState = func(AddressState) {}
	}
	return &Fleet{
		Options: o, redis: client, started: time.Now(), beat: make(chan struct{}, 1), running: make(chan struct{}, maxRunning),
		seen: newAnswered(), places: newPlaces(), states: states{byAddress: make(map[addressKey]AddressState)},
	}
}

// Run sends heartbeats and carries out commands until ctx is done. It then signs off, and
// returns nil.
func (f *Fleet) Run(ctx context.Context) error {
	if f.redis == nil {
		if err := f.loadFile(); err != nil {
			f.Log.Error("the states of addresses that operators have set are unknown", zap.Error(err))
		}
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
		err := f.synchronize(ctx)
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

// synchronize tells Redis what this gateway knows, and learns what the others do.
func (f *Fleet) synchronize(ctx context.Context) error {
	if f.isReading.Load() {
		if err := f.heartbeat(ctx); err != nil {
			return err
		}
	}
	return errors.Join(f.loadStates(ctx), f.renewPlaces(ctx))
}

// Announce sends a heartbeat soon, because this gateway's state has changed, and does all else
// that a heartbeat does.
func (f *Fleet) Announce() {
	select {
	case f.beat <- struct{}{}:
	default: // one is due
	}
}

// The keys.
func (f *Fleet) gatewayKey(id string) string { return f.Prefix + "gateway:" + id }
func (f *Fleet) indexKey() string            { return f.Prefix + "gateways" }

// heartbeat announces this gateway.
func (f *Fleet) heartbeat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	// The clock of Redis decides which gateways are old: one whose own clock is wrong must not
	// remove the others.
	now, err := indexScript.Run(ctx, f.redis, []string{f.indexKey()}, f.ID, forgetAfter.Milliseconds(), maxGateways).Int64()
	if err != nil {
		return err
	}
	load := f.Describe()
	return heartbeatScript.Run(ctx, f.redis, []string{f.gatewayKey(f.ID)}, heartbeatTTL.Milliseconds(),
		"name", f.Name, "version", f.Version, "state", load.State, "api", load.API, "sessions", load.Sessions,
		"logins_per_second", load.LoginsPerSecond, "started", f.started.UnixMilli(), "heartbeat", now).Err()
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
