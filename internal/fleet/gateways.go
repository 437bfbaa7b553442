package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/sanitize"
)

// maxTime is the last millisecond that RFC 3339 can express, since 1970.
const maxTime = 253402300799999

// fieldNames are the fields of a gateway in Redis that this version reads. Constant.
var fieldNames = []string{"name", "version", "state", "api", "sessions", "logins_per_second", "started", "heartbeat"}

// Gateway is one gateway of the fleet.
type Gateway struct {
	ID, Name, Version  string
	Started, Heartbeat time.Time
	Load
}

// self returns this gateway.
func (f *Fleet) self() Gateway {
	return Gateway{ID: f.ID, Name: f.Name, Version: f.Version, Started: f.started, Heartbeat: time.Now(), Load: f.Describe()}
}

// List returns the live gateways of the fleet, this one first. With an error, which is ErrRedis
// or wraps it, it returns this one only.
func (f *Fleet) List(ctx context.Context) ([]Gateway, error) {
	all := []Gateway{f.self()}
	if f.redis == nil {
		return all, nil
	}
	ctx, cancel := context.WithTimeout(ctx, redisTimeout)
	defer cancel()
	ids, err := f.redis.ZRevRange(ctx, f.indexKey(), 0, maxGateways-1).Result()
	if err != nil {
		return all, fmt.Errorf("%w: %w", ErrRedis, err)
	}
	pipe := f.redis.Pipeline()
	replies := make(map[string]*redis.SliceCmd)
	for _, id := range ids {
		if id != f.ID && len(id) <= maxText {
			replies[id] = pipe.HMGet(ctx, f.gatewayKey(id), fieldNames...)
		}
	}
	_, _ = pipe.Exec(ctx) // its error is that of a command
	for id, reply := range replies {
		if err := reply.Err(); err != nil && !redis.HasErrorPrefix(err, "WRONGTYPE") {
			return all[:1], fmt.Errorf("%w: %w", ErrRedis, err)
		}
		if fields := parseFields(reply.Val()); len(fields) > 0 {
			all = append(all, newGateway(id, fields))
		}
	}
	slices.SortFunc(all[1:], func(a, b Gateway) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Started.Compare(b.Started), strings.Compare(a.ID, b.ID))
	})
	return all, nil
}

// parseFields returns the fields of a gateway that it has in Redis.
func parseFields(values []any) map[string]string {
	fields := make(map[string]string)
	for i, value := range values {
		if text, ok := value.(string); ok && i < len(fieldNames) {
			fields[fieldNames[i]] = text
		}
	}
	return fields
}

// newGateway returns the gateway with these fields in Redis, which may contain anything.
func newGateway(id string, fields map[string]string) Gateway {
	text := func(name string) string { return sanitize.Line(fields[name], maxText) }
	number := func(name string) int64 {
		n, _ := strconv.ParseInt(fields[name], 10, 64) // 0 if it is none
		return n
	}
	date := func(name string) time.Time { return time.UnixMilli(max(0, min(number(name), maxTime))) }
	perSecond, _ := strconv.ParseFloat(fields["logins_per_second"], 64) // 0 if it is none
	g := Gateway{
		ID: sanitize.Line(id, maxText), Name: text("name"), Version: text("version"),
		Started: date("started"), Heartbeat: date("heartbeat"),
		Load: Load{State: text("state"), API: text("api"), Sessions: int(max(0, number("sessions"))), LoginsPerSecond: perSecond},
	}
	if !slices.Contains([]string{"starting", "serving", "draining"}, g.State) {
		g.State = "starting"
	}
	if !(perSecond >= 0 && perSecond < 1e9) { // also NaN
		g.LoginsPerSecond = 0
	}
	return g
}
