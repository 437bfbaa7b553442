package routing

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

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

// replies are the three records of one user and those of the samples, as received.
type replies struct {
	user, domain, deflt *redis.MapStringStringCmd
	samples             []*redis.MapStringStringCmd
}

// fetch reads all three records in one round trip, and the samples after them. If a record is
// missing but a later sample is there, the store had its records when it was read. In a
// cluster the nodes are queried concurrently, and the order holds on each.
func (s *store) fetch(ctx context.Context, u identity.User, samples []string) (replies, error) {
	pipe := s.rdb.Pipeline()
	var r replies
	r.user = pipe.HGetAll(ctx, s.keys.user(u))
	if u.Domain() != "" {
		r.domain = pipe.HGetAll(ctx, s.keys.domain(u.Domain()))
	}
	r.deflt = pipe.HGetAll(ctx, s.keys.deflt())
	for _, key := range samples {
		r.samples = append(r.samples, pipe.HGetAll(ctx, key))
	}
	check := s.echo(ctx, pipe)
	_, err := pipe.Exec(ctx)
	if err != nil && r.user.Val() == nil && r.user.Err() == nil {
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
	if recs.decision, err = s.parseReplies(u, r); err != nil {
		return userRecords{}, err
	}
	for i, cmd := range []*redis.MapStringStringCmd{r.user, r.domain, r.deflt} {
		if cmd == nil || cmd.Err() != nil {
			continue
		}
		key := [...]string{s.keys.user(u), s.keys.domain(u.Domain()), s.keys.deflt()}[i]
		switch {
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

// parseReplies returns the decision for u. An error wraps errInvalidRecord if a record that
// matters is malformed; any other error means that Redis gave no answer.
func (s *store) parseReplies(u identity.User, r replies) (decision, error) {
	// A record matters only if those before it are known to be absent.
	user, err := s.userRecord(u, r.user)
	if err != nil || user.present {
		return s.keys.decide(u, user, record{}, record{}), err
	}
	var domain record
	if r.domain != nil {
		domain, err = s.sharedRecord(s.keys.domain(u.Domain()), r.domain)
		if err != nil || domain.present {
			return s.keys.decide(u, user, domain, record{}), err
		}
	}
	deflt, err := s.sharedRecord(s.keys.deflt(), r.deflt)
	return s.keys.decide(u, user, domain, deflt), err
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

// writeAcceptance writes an acceptance with a later time than the one before it.
func (s *store) writeAcceptance(ctx context.Context, by string) error {
	key := s.keys.acceptance()
	fields, err := s.rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return readError(key, err)
	}
	at := max(time.Now().UnixMilli(), parseAcceptance(fields).At+1)
	if err := s.rdb.HSet(ctx, key, fieldAt, at, fieldBy, by).Err(); err != nil {
		return writeError("write", key, err)
	}
	return nil
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

func (s *store) userRecord(u identity.User, cmd *redis.MapStringStringCmd) (record, error) {
	key := s.keys.user(u)
	fields, err := replyFields(key, cmd)
	if err != nil {
		return record{}, err
	}
	rec, err := s.rules.parseUser(u, fields)
	if err != nil {
		return record{}, fmt.Errorf("%s: %w", key, err)
	}
	return rec, nil
}

func (s *store) sharedRecord(key string, cmd *redis.MapStringStringCmd) (record, error) {
	fields, err := replyFields(key, cmd)
	if err != nil {
		return record{}, err
	}
	rec, err := s.rules.parseShared(fields)
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

// writeScript changes a record atomically. ARGV is the number of fields to remove, their
// names, and then names and values to set. Redis does not roll back a script, nor commands of
// a MULTI that fails. So the script exercises both rights before it changes anything: removing
// a field that no record has does nothing.
const writeScript = `
local unset = tonumber(ARGV[1])
if unset > 0 then redis.call('HDEL', KEYS[1], '') end
if #ARGV > unset + 1 then redis.call('HSET', KEYS[1], unpack(ARGV, unset + 2)) end
if unset > 0 then redis.call('HDEL', KEYS[1], unpack(ARGV, 2, unset + 1)) end
return 1
`

// write changes fields of a record; an empty value removes a field. It rejects records that
// this gateway would reject.
func (s *store) write(ctx context.Context, t Target, change map[string]string) error {
	key := s.keys.key(t)
	fields, err := s.rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return readError(key, err)
	}
	e, err := s.rules.planEdit(t, fields, change)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if err := redis.NewScript(writeScript).Run(ctx, s.rdb, []string{key}, e.scriptArgs()...).Err(); err != nil {
		return writeError("write", key, err)
	}
	return nil
}

// remove deletes a record and reports whether there was one.
func (s *store) remove(ctx context.Context, t Target) (bool, error) {
	key := s.keys.key(t)
	n, err := s.rdb.Del(ctx, key).Result()
	if err != nil {
		return false, writeError("delete", key, err)
	}
	return n > 0, nil
}

// writeError adds what an error means for the record. An error reply means that nothing was
// changed; without a reply, the outcome is unknown.
func writeError(verb, key string, err error) error {
	var reply redis.Error
	if errors.As(err, &reply) {
		return fmt.Errorf("%s %s: nothing was changed: %w", verb, key, err)
	}
	return fmt.Errorf("%s %s: Redis did not answer, so it may have been changed: %w", verb, key, err)
}
