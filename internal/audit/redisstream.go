package audit

import (
	"bytes"
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// maxStreamBatch bounds the records of one round trip to Redis.
const maxStreamBatch = 256

// redisStream is a sink: a Redis stream, trimmed to about maxRecords. The record is
// in the field record of an entry. After an interrupted round trip a record may be
// in it twice.
type redisStream struct {
	redis      redis.UniversalClient // Set once.
	key        string                // Set once.
	maxRecords int64                 // Set once.
}

func (r *redisStream) write(lines []byte) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sinkTimeout)
	defer cancel()
	pipe := r.redis.Pipeline()
	var lengths []int
	for rest := lines; len(rest) > 0 && len(lengths) < maxStreamBatch; {
		end := bytes.IndexByte(rest, '\n') + 1
		pipe.XAdd(ctx, &redis.XAddArgs{Stream: r.key, MaxLen: r.maxRecords, Approx: true, Values: []any{"record", rest[:end-1]}})
		lengths = append(lengths, end)
		rest = rest[end:]
	}
	cmds, err := pipe.Exec(ctx)
	written := 0
	for i, cmd := range cmds {
		if cmd.Err() != nil {
			break
		}
		written += lengths[i]
	}
	if err != nil {
		return written, fmt.Errorf("add to the stream %s: %w", r.key, err)
	}
	return written, nil
}

func (r *redisStream) maintain() error { return nil }

func (r *redisStream) close() error { return nil } // the owner closes the client
