package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
)

// MaxDuration is what any time from Redis is cut down to.
const MaxDuration = 10 * 365 * 24 * time.Hour

// liftBatch is how many bans one script ends.
const liftBatch = 500

// Ban is the ban of a network in Redis.
type Ban struct {
	Net       netip.Prefix
	Reason    event.BanReason
	Remaining time.Duration // below 0: since it ended
	Count     int           // number of bans of this network, this one included
	Active    bool          // users have logged in from there
	Note      string        // of an operator
}

// How a ban is imposed, for the ban script: by a gateway, by an operator, or by an operator's
// order that another gateway may have given to Redis already.
const (
	automatic = "many"
	ordered   = "order"
	again     = "again"
)

// Ban bans a network at all gateways for first, twice as long for each earlier ban, up to
// longest. It returns the ban that holds.
func (c *Cluster) Ban(ctx context.Context, b Ban, first, longest time.Duration) (Ban, error) {
	r, err := c.askOne(ctx, c.banCall(b, automatic, first, longest))
	if err != nil {
		return b, err
	}
	words, err := r.Slice()
	if err != nil || len(words) != 4 {
		return b, errForm
	}
	b.Remaining, b.Count = clamp(number(words[1])), int(number(words[2]))
	return b, nil
}

// OrderBan is Ban for an operator, for exactly b.Remaining.
func (c *Cluster) OrderBan(ctx context.Context, b Ban) error {
	k := c.keys.bans()
	err := c.checkRights(ctx, "HSET", k[0], "HDEL", k[0], "ZADD", k[1], "ZREM", k[1], "XADD", k[2], "INCR", k[3])
	if err == nil {
		err = c.order(ctx, c.banCall(b, ordered, b.Remaining, b.Remaining))
	}
	return err
}

// WriteBans writes bans that Redis has not or has lost. Of several gateways that do so the
// first is believed. It returns those of which it is not known whether Redis has them.
func (c *Cluster) WriteBans(ctx context.Context, bans []Ban) (unwritten []netip.Prefix) {
	calls := make([]Call, len(bans))
	for i, b := range bans {
		how := automatic
		if b.Reason == event.BanOperator {
			how = again
		}
		calls[i] = c.banCall(b, how, b.Remaining, b.Remaining)
	}
	replies, err := c.ask(ctx, calls...)
	for i, b := range bans {
		if replies != nil { // otherwise err is that of all
			err = replies[i].Err()
		}
		if err != nil && !isAnswer(err) {
			unwritten = append(unwritten, b.Net)
		}
	}
	return unwritten
}

func (c *Cluster) banCall(b Ban, how string, first, longest time.Duration) Call {
	active := "0"
	if b.Active {
		active = "1"
	}
	return Call{"ban", c.keys.bans(), []any{
		b.Net.String(), first.Milliseconds(), longest.Milliseconds(), string(b.Reason), active, b.Note, how, c.MaxBans,
	}}
}

// Unban ends all bans that overlap a network, and forgets its failures, for an operator. It
// returns the networks that were banned.
func (c *Cluster) Unban(ctx context.Context, net netip.Prefix) (ended []netip.Prefix, err error) {
	gone := []any{net.String()} // also without a ban: its failures are forgotten
	err = c.Bans(ctx, func(b Ban) {
		if !b.Net.Overlaps(net) {
			return
		}
		if b.Remaining > 0 {
			ended = append(ended, b.Net)
		}
		if b.Net != net {
			gone = append(gone, b.Net.String())
		}
	})
	for batch := range slices.Chunk(gone, liftBatch) {
		if err == nil {
			err = c.order(ctx, Call{"lift", c.keys.bans(), batch})
		}
	}
	if err == nil {
		err = c.order(ctx, Call{"delete", []string{c.keys.failedNet(net)}, nil})
	}
	return ended, err
}

// CheckUnban returns an error if this Redis user may not run all that Unban runs.
func (c *Cluster) CheckUnban(ctx context.Context, net netip.Prefix) error {
	k := c.keys.bans()
	return c.checkRights(ctx, "HDEL", k[0], "ZREM", k[1], "XADD", k[2], "INCR", k[3], "DEL", c.keys.failedNet(net))
}

// Bans calls each with every ban, those that have ended included.
func (c *Cluster) Bans(ctx context.Context, each func(Ban)) error {
	for cursor := "0"; ; {
		r, err := c.askOne(ctx, Call{"bans", c.keys.bans(), []any{cursor}})
		if err != nil {
			return err
		}
		words, err := r.Slice()
		if err != nil || len(words)%3 != 1 {
			return errForm
		}
		for w := words[1:]; len(w) > 0; w = w[3:] {
			if b, ok := parseBan(text(w[0]), number(w[1]), text(w[2])); ok {
				each(b)
			}
		}
		if cursor = text(words[0]); cursor == "0" {
			return nil
		}
	}
}

// parseBan reads the record "count active reason note" of a network.
func parseBan(net string, remaining int64, record string) (b Ban, ok bool) {
	f := strings.SplitN(record, " ", 4)
	p, err := netip.ParsePrefix(net)
	if err != nil || len(f) != 4 {
		return b, false
	}
	n, err := strconv.Atoi(f[0])
	left := time.Duration(max(remaining, -MaxDuration.Milliseconds())) * time.Millisecond
	if remaining > 0 {
		left = clamp(remaining)
	}
	return Ban{p, event.BanReason(f[2]), left, min(max(n, 0), 64), f[1] == "1", f[3]}, err == nil
}

// Change is a change of a ban or a user, by a gateway or an operator.
type Change struct {
	Kind string // ban, again, lift, forgive
	Who  string // the network or the user
	Ban  Ban    // the network's now; zero if it has none
	at   Cursor
}

// Cursor is a position among the changes. The zero Cursor is before the first read.
type Cursor struct {
	n  int64  // the counter of changes
	id string // in the stream
}

// Progress is how changes continue from a Cursor.
type Progress uint8

// Complete means that no change is missing. After Gap all bans have to be read. After Lost
// Redis no longer has what it had, and has to be given it: it has fewer changes, or as many
// and others, or none after those it had.
const (
	Complete Progress = iota
	Gap
	Lost
)

// Changes returns the changes after a cursor, and the next cursor.
func (c *Cluster) Changes(ctx context.Context, at Cursor) (changes []Change, next Cursor, p Progress, err error) {
	r, err := c.askOne(ctx, Call{"changes", c.keys.bans(), []any{at.id}})
	if err != nil {
		return nil, at, Complete, err
	}
	next, changes, err = parseChanges(r)
	switch {
	case err != nil:
		return nil, at, Complete, err
	case at.id == "":
		return nil, next, Gap, nil
	case next == at:
		return nil, at, Complete, nil
	case next.n <= at.n || len(changes) == 0 || changes[0].at.n <= at.n:
		return nil, next, Lost, nil
	case changes[0].at.n > at.n+1:
		return nil, next, Gap, nil
	}
	return changes, changes[len(changes)-1].at, Complete, nil
}

func parseChanges(reply *redis.Cmd) (latest Cursor, changes []Change, err error) {
	words, err := reply.Slice()
	if err != nil {
		return latest, nil, err
	}
	const head, each = 2, 6
	if len(words) < head || (len(words)-head)%each != 0 {
		return latest, nil, errForm
	}
	latest = Cursor{number(words[0]), text(words[1])}
	for w := words[head:]; len(w) > 0; w = w[each:] {
		change := Change{Kind: text(w[2]), Who: text(w[3]), at: Cursor{number(w[1]), text(w[0])}}
		change.Ban, _ = parseBan(change.Who, number(w[4]), text(w[5]))
		changes = append(changes, change)
	}
	return latest, changes, nil
}

// clamp converts ms from Redis, which may be anything.
func clamp(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), MaxDuration.Milliseconds())) * time.Millisecond
}

func number(x any) int64 { n, _ := x.(int64); return n }
func text(x any) string  { s, _ := x.(string); return s }
