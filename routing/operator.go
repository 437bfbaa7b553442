package routing

import (
	"context"
	"errors"
	"fmt"

	"imapgate/internal/identity"
)

// errNoRedis is returned by operations that need Redis.
var errNoRedis = fmt.Errorf("%w: no Redis is configured", ErrUnavailable)

// errNotRedisSource rejects records of domains and the default if routes do not come from
// Redis.
var errNotRedisSource = errors.New("routing.source is not redis, so no gateway would read this record")

// errHashUnknown means that the password is in Redis only, and Redis is down.
var errHashUnknown = fmt.Errorf("%w: the password hash is not known here", ErrUnavailable)

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
func (r *Router) SetRecord(ctx context.Context, t Target, fields map[string]string) error {
	if r.store == nil {
		return errNoRedis
	}
	if t.User().IsZero() && r.cfg.Source != SourceRedis {
		return errNotRedisSource
	}
	return r.store.write(ctx, t, fields)
}

// DeleteRecord removes a record, so that the next one decides: after a user's record the
// domain's, and then the default. It reports whether there was a record.
func (r *Router) DeleteRecord(ctx context.Context, t Target) (bool, error) {
	if r.store == nil {
		return false, errNoRedis
	}
	return r.store.remove(ctx, t)
}

// AcceptEmpty confirms to all gateways that the records missing from Redis were removed on
// purpose. Users without a record are unknown again. by names the operator.
func (r *Router) AcceptEmpty(ctx context.Context, by string) error {
	if r.store == nil {
		return errNoRedis
	}
	return r.store.writeAcceptance(ctx, by)
}
