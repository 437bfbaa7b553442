package routing

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"imapgate/internal/identity"

	"github.com/redis/go-redis/v9"
)

// errReplyMismatch means that the replies of Redis do not belong to the commands sent.
var errReplyMismatch = errors.New("a reply belongs to another query")

// errNoReply means that a command got neither a reply nor an error.
var errNoReply = errors.New("no reply")

// store reads and writes records. It keeps no state.
type store struct {
	// Set once.
	rdb   redis.UniversalClient
	keys  keys
	rules rules
}

// replies are the records of one user, in order of precedence, and the samples, as received.
type replies struct{ records, samples []*redis.MapStringStringCmd }

// fetch reads all records of u in one round trip, and the samples after them. If a record is
// missing but a later sample is there, the store had its records when it was read. In a
// cluster the nodes are queried concurrently, and the order holds on each.
func (s *store) fetch(ctx context.Context, u identity.User, samples []string) (replies, error) {
	pipe := s.rdb.Pipeline()
	var r replies
	for _, key := range s.keys.candidates(u) {
		r.records = append(r.records, pipe.HGetAll(ctx, key))
	}
	for _, key := range samples {
		r.samples = append(r.samples, pipe.HGetAll(ctx, key))
	}
	check := s.echo(ctx, pipe)
	_, err := pipe.Exec(ctx)
	if own := r.records[0]; err != nil && own.Val() == nil && own.Err() == nil {
		return r, err // go-redis sets no error on commands it did not send
	}
	return r, check() // otherwise each command has its own error
}

// echo appends an ECHO of a random number to pipe and returns a check of its reply. If replies
// are shifted on this connection, as after a cancelled command, the number does not come back
// and no reply is trusted. In a cluster, a command without a key goes to any node; there only
// the "user" field guards against another user's record.
func (s *store) echo(ctx context.Context, pipe redis.Pipeliner) func() error {
	if _, single := s.rdb.(*redis.Client); !single {
		return func() error { return nil }
	}
	nonce := strconv.FormatUint(rand.Uint64(), 36)
	reply := pipe.Echo(ctx, nonce)
	return func() error {
		if err := reply.Err(); err != nil {
			return err
		}
		if reply.Val() != nonce {
			return errReplyMismatch
		}
		return nil
	}
}

// readUser reads the records of u and reports which of them, and of the samples, are missing.
func (s *store) readUser(ctx context.Context, u identity.User, samples []string) (userRecords, error) {
	r, err := s.fetch(ctx, u, samples)
	if err != nil {
		return userRecords{}, err
	}
	var recs userRecords
	if recs.decision, err = s.decide(u, r.records); err != nil {
		return userRecords{}, err
	}
	for i, key := range s.keys.candidates(u) {
		switch cmd := r.records[i]; {
		case cmd.Err() != nil:
		case len(cmd.Val()) > 0:
			recs.present = append(recs.present, key)
		case len(recs.present) == 0: // it would have decided
			recs.absent = append(recs.absent, key)
		}
	}
	for i, cmd := range r.samples {
		if cmd.Err() == nil && len(cmd.Val()) == 0 {
			recs.missingSamples = append(recs.missingSamples, samples[i])
		}
	}
	return recs, nil
}

// decide returns the decision for u: that of the first record that exists. An error wraps
// errInvalidRecord if a record that matters is malformed; any other error means that Redis gave
// no answer. A record matters only if those before it are known to be absent.
func (s *store) decide(u identity.User, records []*redis.MapStringStringCmd) (decision, error) {
	for i, key := range s.keys.candidates(u) {
		rec, err := s.parseReply(u, key, records[i])
		if err != nil {
			return decision{}, err
		}
		if rec.present {
			return decision{match: s.keys.match(key), key: key, record: rec}, nil
		}
	}
	return decision{}, nil
}

// inspect returns which records exist, and the operator's acceptance. An error means that
// Redis did not answer.
func (s *store) inspect(ctx context.Context, keys []string) (inspection, error) {
	pipe := s.rdb.Pipeline()
	cmds := make([]*redis.MapStringStringCmd, len(keys))
	for i, key := range keys {
		cmds[i] = pipe.HGetAll(ctx, key)
	}
	reply := pipe.HGetAll(ctx, s.keys.acceptance())
	check := s.echo(ctx, pipe)
	_, _ = pipe.Exec(ctx) // each command has its own error
	found := inspection{present: make(map[string]bool, len(keys)), acceptance: parseAcceptance(reply.Val())}
	for i, cmd := range cmds {
		fields, err := replyFields(keys[i], cmd)
		if err != nil && !errors.Is(err, errInvalidRecord) {
			return inspection{}, err
		}
		found.present[keys[i]] = err != nil || len(fields) > 0 // a key of the wrong type exists
	}
	return found, check()
}

// parseAcceptance parses an acceptance; the zero acceptance if it is malformed.
func parseAcceptance(fields map[string]string) acceptance {
	at, err := strconv.ParseInt(fields[fieldAt], 10, 64)
	if err != nil {
		return acceptance{}
	}
	by := fields[fieldBy]
	return acceptance{At: at, By: by[:min(len(by), identity.MaxUser)]}
}

// nodeOf returns the address of the primary that has a key; "" without a cluster.
func (s *store) nodeOf(ctx context.Context, key string) (string, error) {
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return "", nil
	}
	node, err := cluster.MasterForKey(ctx, key)
	if err != nil {
		return "", err
	}
	return node.Options().Addr, nil
}

// replyFields returns the fields of a reply. A missing reply has a nil map, an absent record
// an empty one; only the empty map means "no record".
func replyFields(key string, cmd *redis.MapStringStringCmd) (map[string]string, error) {
	if err := cmd.Err(); err != nil {
		return nil, readError(key, err)
	}
	if cmd.Val() == nil {
		return nil, readError(key, errNoReply)
	}
	return cmd.Val(), nil
}

// parseReply checks the record of one of u's candidate keys.
func (s *store) parseReply(u identity.User, key string, cmd *redis.MapStringStringCmd) (record, error) {
	fields, err := replyFields(key, cmd)
	if err != nil {
		return record{}, err
	}
	if s.keys.match(key) != MatchUser {
		u = identity.User{}
	}
	rec, err := s.rules.parse(u, fields)
	if err != nil {
		return record{}, fmt.Errorf("%s: %w", key, err)
	}
	return rec, nil
}

// readError distinguishes a key of the wrong type, which is an invalid record, from errors of
// Redis.
func readError(key string, err error) error {
	if strings.HasPrefix(err.Error(), "WRONGTYPE") {
		return fmt.Errorf("%s: %w: not a hash", key, errInvalidRecord)
	}
	return fmt.Errorf("read %s: %w", key, err)
}
