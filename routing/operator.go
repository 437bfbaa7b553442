package routing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
)

// errNoRedis is returned by operations that need Redis.
var errNoRedis = fmt.Errorf("%w: no Redis is configured", ErrUnavailable)

// errNotRedisSource rejects records of domains and the default if routes do not come from
// Redis.
var errNotRedisSource = fmt.Errorf("%w: routing.source is not redis, so no gateway would read it", ErrInvalidRecord)

// ErrInvalidRecord means that gateways would reject a record, or never read it.
var ErrInvalidRecord = errors.New("invalid record")

// errHashUnknown means that the password is in Redis only, and Redis is down.
var errHashUnknown = fmt.Errorf("%w: the password hash is not known here", ErrUnavailable)

// Target names one record: that of a user, that of a domain, or the default. The zero Target
// is the default.
type Target struct {
	user   identity.User
	domain string
}

// ForUser returns the target for the record of one user.
func ForUser(u identity.User) Target { return Target{user: u} }

// ForDomain returns the target for the users of a domain without a record of their own. domain
// is in canonical form.
func ForDomain(domain string) Target { return Target{domain: domain} }

// ForDefault returns the target for all users without another record.
func ForDefault() Target { return Target{} }

// User returns the user of a user's record, and the zero User for other records.
func (t Target) User() identity.User { return t.user }

// String returns the name of the user or the domain, or "the default".
func (t Target) String() string {
	switch {
	case !t.user.IsZero():
		return t.user.String()
	case t.domain != "":
		return t.domain
	}
	return "the default"
}

// Fields returns the names of the fields that this kind of record may have.
func (t Target) Fields() []string {
	switch {
	case !t.user.IsZero():
		return []string{fieldBackend, fieldLogin, fieldMode, fieldPassword, fieldState}
	case t.domain != "":
		return []string{fieldBackend, fieldMode, fieldState}
	}
	return []string{fieldBackend, fieldMode}
}

// key returns the Redis key of the record.
func (k keys) key(t Target) string {
	switch {
	case !t.user.IsZero():
		return k.user(t.user)
	case t.domain != "":
		return k.domain(t.domain)
	}
	return k.deflt()
}

// Record returns the fields of a record without checking them, with the password hash
// replaced; nil if there is no record.
func (r *Router) Record(ctx context.Context, t Target) (map[string]string, error) {
	if r.store == nil {
		return nil, errNoRedis
	}
	key := r.keys.key(t)
	fields, err := r.store.rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return nil, readError(key, err)
	}
	if len(fields) == 0 {
		return nil, nil
	}
	if hash, ok := fields[fieldPassword]; ok {
		fields[fieldPassword] = identity.NewSecret(hash).String()
	}
	return fields, nil
}

// SetRecord changes fields of a record; an empty value removes a field. It rejects records
// that gateways would reject or never read.
func (r *Router) SetRecord(ctx context.Context, t Target, change map[string]string) error {
	if r.store == nil {
		return errNoRedis
	}
	if t.User().IsZero() && r.cfg.Source != SourceRedis {
		return errNotRedisSource
	}
	key := r.keys.key(t)
	fields, err := r.store.rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return readError(key, err)
	}
	args, err := r.rules.planEdit(t, fields, change)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalidRecord, key, err)
	}
	if err := redis.NewScript(writeScript).Run(ctx, r.store.rdb, []string{key}, args...).Err(); err != nil {
		return writeError("write", key, err)
	}
	return nil
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

// planEdit returns the arguments of writeScript that apply change to a record with these
// fields; an empty value removes a field. It returns an error if a gateway would reject the
// resulting record.
func (r rules) planEdit(t Target, fields, change map[string]string) ([]any, error) {
	var unset, set []any
	result := make(map[string]string)
	maps.Copy(result, fields)
	if !t.user.IsZero() { // guards against a reply that belongs to another user's query
		set, result[fieldUser] = []any{fieldUser, t.user.String()}, t.user.String()
	}
	for _, name := range slices.Sorted(maps.Keys(change)) {
		value := change[name]
		// A field that is not allowed here can still be removed.
		if allowed := t.Fields(); value != "" && !slices.Contains(allowed, name) {
			return nil, fmt.Errorf("%q is not one of %s", name, strings.Join(allowed, ", "))
		}
		if value == "" && name == fieldUser {
			return nil, fmt.Errorf("field %q is the owner and cannot be removed", name)
		}
		if value == "" {
			delete(result, name)
			unset = append(unset, name)
			continue
		}
		result[name], set = value, append(set, name, value)
	}
	if len(result) == 0 {
		return nil, errors.New("no field would be left; delete the record to remove it")
	}
	if _, err := r.parse(t.user, result); err != nil {
		return nil, fmt.Errorf("gateways would reject it: %w", err)
	}
	return slices.Concat([]any{len(unset)}, unset, set), nil
}

// DeleteRecord removes a record, so that the next one decides: after a user's record the
// domain's, and then the default. It reports whether there was a record.
func (r *Router) DeleteRecord(ctx context.Context, t Target) (bool, error) {
	if r.store == nil {
		return false, errNoRedis
	}
	key := r.keys.key(t)
	n, err := r.store.rdb.Del(ctx, key).Result()
	if err != nil {
		return false, writeError("delete", key, err)
	}
	return n > 0, nil
}

// AcceptEmpty confirms to all gateways that the records missing from Redis were removed on
// purpose. Users without a record are unknown again. by names the operator. The time of an
// acceptance is later than that of the one before it.
func (r *Router) AcceptEmpty(ctx context.Context, by string) error {
	if r.store == nil {
		return errNoRedis
	}
	key := r.keys.acceptance()
	fields, err := r.store.rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return readError(key, err)
	}
	at := max(time.Now().UnixMilli(), parseAcceptance(fields).At+1)
	if err := r.store.rdb.HSet(ctx, key, fieldAt, at, fieldBy, by).Err(); err != nil {
		return writeError("write", key, err)
	}
	return nil
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
