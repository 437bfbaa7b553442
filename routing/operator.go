package routing

import (
	"context"
	"errors"
	"fmt"

	"imapgate/internal/identity"
)

// errNoRedis is for what only a Redis can do.
var errNoRedis = fmt.Errorf("%w: no Redis is configured", ErrUnavailable)

// errNotRedisSource is for a record of a domain or the default where routes come from elsewhere.
var errNotRedisSource = errors.New("routing.source is not redis, so no gateway would read this record")

// errHashUnknown is for a user whose password only Redis could tell, and it is away.
var errHashUnknown = fmt.Errorf("%w: the password hash is not known here", ErrUnavailable)

// Record reads a record as it stands, unchecked, with the password hash replaced; nil
// when there is none.
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

// SetRecord changes fields of a record; an empty value removes a field. A record this
// gateway would refuse is not written, nor one that it would never read.
func (r *Router) SetRecord(ctx context.Context, t Target, fields map[string]string) error {
	if r.store == nil {
		return errNoRedis
	}
	if t.User().IsZero() && r.cfg.Source != SourceRedis {
		return errNotRedisSource
	}
	return r.store.write(ctx, t, fields)
}

// DeleteRecord removes a record, so that the next one decides: after a user's that of
// the domain, and then the default. It says whether there was one.
func (r *Router) DeleteRecord(ctx context.Context, t Target) (bool, error) {
	if r.store == nil {
		return false, errNoRedis
	}
	return r.store.remove(ctx, t)
}

// AcceptEmpty tells every gateway that records which are missing from Redis were
// meant to be removed: whoever has none is unknown again. by is who says so.
func (r *Router) AcceptEmpty(ctx context.Context, by string) error {
	if r.store == nil {
		return errNoRedis
	}
	return r.store.writeAcceptance(ctx, by)
}
