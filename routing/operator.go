package routing

import (
	"context"
	"fmt"

	"imapgate/internal/identity"
)

// errNoRedis is for what only a Redis can do.
var errNoRedis = fmt.Errorf("%w: no Redis is configured", ErrUnavailable)

// errNoHash is for a user whose password only Redis could tell, and it is away.
var errNoHash = fmt.Errorf("%w: the password hash is not known here", ErrUnavailable)

// Record reads u's own record as it stands, unchecked, with the password hash
// replaced; nil when there is none.
func (r *Router) Record(ctx context.Context, u identity.User) (map[string]string, error) {
	if r.store == nil {
		return nil, errNoRedis
	}
	fields, err := r.store.rdb.HGetAll(ctx, r.keys.user(u)).Result()
	if err != nil {
		return nil, readError(r.keys.user(u), err)
	}
	if len(fields) == 0 {
		return nil, nil
	}
	if hash, ok := fields[fieldPassword]; ok {
		fields[fieldPassword] = identity.NewSecret(hash).String()
	}
	return fields, nil
}

// SetRecord changes fields of u's own record; an empty value removes a field. A
// record this gateway would refuse is not written.
func (r *Router) SetRecord(ctx context.Context, u identity.User, fields map[string]string) error {
	if r.store == nil {
		return errNoRedis
	}
	return r.store.write(ctx, u, fields)
}

// DeleteRecord removes u's own record, so that the domain's or the default
// decides, and says whether there was one.
func (r *Router) DeleteRecord(ctx context.Context, u identity.User) (bool, error) {
	if r.store == nil {
		return false, errNoRedis
	}
	return r.store.remove(ctx, u)
}

// AcceptEmpty tells every gateway that records which are missing from Redis were
// meant to be removed: whoever has none is unknown again. by is who says so.
func (r *Router) AcceptEmpty(ctx context.Context, by string) error {
	if r.store == nil {
		return errNoRedis
	}
	return r.store.accept(ctx, by)
}
