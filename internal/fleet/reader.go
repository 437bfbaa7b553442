package fleet

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/sleep"
)

const (
	maxBatch = 100 // commands read at a time
	// blockTime is how long a read waits for commands. After it the reader checks whether
	// Redis has lost what it held.
	blockTime = time.Second
	// minRetry and maxRetry bound the pause between attempts to reach Redis. It doubles.
	minRetry = 10 * time.Millisecond
	maxRetry = time.Second
	// rereadTime is how much of a stream is read again that was replaced by another: older
	// commands have expired.
	rereadTime = time.Minute
	// maxReaderAge is how long a connection of the reader lasts, so that it does not stay with a
	// server that has become a replica.
	maxReaderAge = time.Minute

	startOfStream = "0-0"
)

// reader reads the stream of commands.
type reader struct {
	// Set once.
	*Fleet
	// client has one connection of its own: a read that waits for commands takes none from
	// logins.
	client redis.UniversalClient

	// Owned by readCommands.
	position  string // of the last entry read; "" until known
	lastEntry string // position, if there was an entry; "" otherwise
	failing   bool
}

// newReadClient returns a client like another, with one connection to a server.
func newReadClient(client redis.UniversalClient) redis.UniversalClient {
	switch c := client.(type) {
	case *redis.Client:
		o := *c.Options()
		o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 1, 0, 0, 0
		o.MaxRetries, o.ConnMaxLifetime = -1, maxReaderAge
		return redis.NewClient(&o)
	case *redis.ClusterClient:
		o := *c.Options()
		o.Addrs = slices.Clone(o.Addrs)
		o.PoolSize, o.MinIdleConns, o.MaxIdleConns, o.MaxActiveConns = 1, 0, 0, 0
		o.ConnMaxLifetime = maxReaderAge
		return redis.NewClusterClient(&o)
	}
	return nil
}

// readCommands carries out the commands of the stream until ctx is done.
func (f *Fleet) readCommands(ctx context.Context) {
	r := &reader{Fleet: f, client: newReadClient(f.redis)}
	if r.client == nil {
		r.client = f.redis
	} else {
		// The end of the gateway does not wait for a read.
		stop := context.AfterFunc(ctx, func() { _ = r.client.Close() })
		defer func() {
			if stop() {
				_ = r.client.Close()
			}
		}()
	}
	for wait := minRetry; ctx.Err() == nil; {
		err := r.next(ctx)
		if ctx.Err() != nil {
			return
		}
		r.report(err)
		if err == nil {
			wait = minRetry
			continue
		}
		_ = sleep.For(ctx, wait/2+rand.N(wait)) // ends with ctx
		wait = min(2*wait, maxRetry)
	}
}

// report logs that commands cannot be read, and that they can be again. Then much may have
// changed.
func (r *reader) report(err error) {
	if r.failing == (err != nil) {
		return
	}
	r.failing = err != nil
	if r.failing {
		r.Log.Warn("commands of other gateways cannot be read", zap.Error(err))
		return
	}
	r.Log.Info("commands of other gateways are read again")
	r.Announce()
}

// next waits for commands, and starts them.
func (r *reader) next(ctx context.Context) error {
	before := r.lastEntry
	entries, now, err := r.read(ctx)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if c, ok := parseCommand(entry.Values); ok {
			r.start(ctx, c, time.Now().Add(c.Deadline.Sub(now)))
		}
		r.position, r.lastEntry = entry.ID, entry.ID
	}
	if len(entries) == 0 {
		return r.checkLoss(ctx)
	}
	return r.checkGap(ctx, before)
}

// read waits for commands after position. With commands, it returns the time of Redis.
func (r *reader) read(ctx context.Context) (entries []redis.XMessage, now time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, blockTime+redisTimeout)
	defer cancel()
	if r.position == "" {
		// Commands before the start are not for this gateway.
		last, err := r.last(ctx)
		if err != nil {
			return nil, now, err
		}
		r.position = last
		if last != startOfStream {
			r.lastEntry = last
		}
		r.isReading.Store(true)
		r.Announce()
	}
	streams, err := r.client.XRead(ctx, &redis.XReadArgs{Streams: []string{r.commandsKey(), r.position}, Count: maxBatch, Block: blockTime}).Result()
	if errors.Is(err, redis.Nil) {
		return nil, now, nil
	}
	if err != nil || len(streams) == 0 {
		return nil, now, err
	}
	clock, err := clockScript.Run(ctx, r.client, []string{r.commandsKey()}).Int64()
	return streams[0].Messages, time.UnixMilli(clock), err
}

// last returns the position of the latest command.
func (r *reader) last(ctx context.Context) (string, error) {
	entries, err := r.client.XRevRangeN(ctx, r.commandsKey(), "+", "-", 1).Result()
	if err != nil || len(entries) == 0 {
		return startOfStream, err
	}
	return entries[0].ID, nil
}

// checkLoss finds out whether Redis has lost what it held. A new stream may begin with positions
// that were there before, if the clock of Redis went back. A gateway that is missing is announced
// again.
func (r *reader) checkLoss(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	last, err := r.last(ctx)
	if err != nil {
		return err
	}
	if isBefore(last, r.position) {
		r.Log.Warn("Redis has lost commands that this gateway has read", zap.String("last", last), zap.String("read", r.position))
		r.position, r.lastEntry = rewind(last), ""
	}
	err = r.client.HGet(ctx, r.gatewayKey(r.ID), "name").Err()
	if errors.Is(err, redis.Nil) {
		r.Announce()
		return nil
	}
	return err
}

// checkGap logs when commands after the entry before were removed unread.
func (r *reader) checkGap(ctx context.Context, before string) error {
	if before == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	first, err := r.client.XRangeN(ctx, r.commandsKey(), "-", "+", 1).Result()
	if err == nil && len(first) > 0 && isBefore(before, first[0].ID) {
		r.Log.Warn("commands may be lost: the stream no longer has the last one that this gateway had read",
			zap.String("read", before), zap.String("first", first[0].ID))
	}
	return err
}

// isBefore reports whether the position a of a stream is before b.
func isBefore(a, b string) bool {
	aTime, aSeq := splitPosition(a)
	bTime, bSeq := splitPosition(b)
	return aTime < bTime || aTime == bTime && aSeq < bSeq
}

// splitPosition returns the milliseconds and the number of a position.
func splitPosition(p string) (ms, seq uint64) {
	before, after, _ := strings.Cut(p, "-")
	ms, _ = strconv.ParseUint(before, 10, 64) // Redis makes positions
	seq, _ = strconv.ParseUint(after, 10, 64)
	return ms, seq
}

// rewind returns the position from which a new stream is read.
func rewind(last string) string {
	ms, _ := splitPosition(last)
	return strconv.FormatUint(ms-min(ms, uint64(rereadTime.Milliseconds())), 10) + "-0"
}
