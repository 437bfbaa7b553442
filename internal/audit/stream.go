package audit

import (
	"bytes"
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// tripRecords bounds the records of one round trip to Redis.
const tripRecords = 256

// stream is a sink: a Redis stream, of about so many records as it may keep.
// Each entry has the record in its field record. After a broken round trip a
// record may be there twice.
type stream struct {
	redis redis.UniversalClient // Set once.
	key   string                // Set once.
	max   int64                 // Set once.
}

func newStream(client redis.UniversalClient, cfg SinkConfig) *stream {
	return &stream{redis: client, key: cfg.Stream, max: cfg.Max}
}

func (s *stream) write(lines []byte) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), sinkWait)
	defer cancel()
	trip := s.redis.Pipeline()
	var lengths []int
	for rest := lines; len(rest) > 0 && len(lengths) < tripRecords; {
		end := bytes.IndexByte(rest, '\n') + 1
		trip.XAdd(ctx, &redis.XAddArgs{Stream: s.key, MaxLen: s.max, Approx: true, Values: []any{"record", rest[:end-1]}})
		lengths = append(lengths, end)
		rest = rest[end:]
	}
	answers, err := trip.Exec(ctx)
	taken := 0
	for i, answer := range answers {
		if answer.Err() != nil {
			break
		}
		taken += lengths[i]
	}
	if err != nil {
		return taken, fmt.Errorf("add to the stream %s: %w", s.key, err)
	}
	return taken, nil
}

func (s *stream) tend() error { return nil }

func (s *stream) close() error { return nil } // the client is its maker's
