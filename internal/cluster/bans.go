package cluster

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/limit/ban"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/sanitize"
)

// MaxDuration is what any time from Redis is cut down to.
const MaxDuration = 10 * 365 * 24 * time.Hour

// MaxNote bounds an operator's note, in bytes.
const MaxNote = 200

const (
	// followInterval is how often a gateway asks for changes, so that a ban holds everywhere
	// within a second.
	followInterval = 500 * time.Millisecond
	// banBatch is how many bans are ended, or written again, at once.
	banBatch = 500
)

// How a ban is imposed, for the ban script: by a gateway, by an operator, or by an operator's
// order that another gateway may have given to Redis already.
const (
	automatic = "many"
	ordered   = "order"
	again     = "again"
)

// Ban bans a network at all gateways, twice as long for each earlier ban. It returns the ban
// that holds.
func (c *Cluster) Ban(ctx context.Context, b ban.Ban) (ban.Ban, error) {
	words, err := c.run(ctx, c.banCall(b, automatic, c.Failures.BanDuration, c.Failures.MaxBanDuration)).Slice()
	if err != nil {
		return b, err
	}
	if len(words) != 4 {
		return b, errForm
	}
	b.Remaining, b.Count = clamp(number(words[1])), int(number(words[2]))
	return b, nil
}

// OrderBan is Ban for an operator, for exactly b.Remaining.
func (c *Cluster) OrderBan(ctx context.Context, b ban.Ban) error {
	k := c.keys.bans()
	if err := c.checkRights(ctx, "HSET", k[0], "HDEL", k[0], "ZADD", k[1], "ZREM", k[1], "XADD", k[2], "INCR", k[3]); err != nil {
		return err
	}
	return c.order(ctx, c.banCall(b, ordered, b.Remaining, b.Remaining))
}

// writeBans writes bans that Redis does not have, or has lost. Of several gateways that do so
// the first is believed.
func (c *Cluster) writeBans(ctx context.Context) {
	bans := c.Table.Unwritten(banBatch)
	var calls []Call
	for _, b := range bans {
		how := automatic
		if b.Reason == event.BanOperator {
			how = again
		}
		calls = append(calls, c.banCall(b, how, b.Remaining, b.Remaining))
	}
	if len(calls) == 0 {
		return
	}
	if _, err := c.ask(ctx, calls...); err == nil {
		c.Table.MarkWritten(bans)
	}
}

func (c *Cluster) banCall(b ban.Ban, how string, first, longest time.Duration) Call {
	active := "0"
	if b.Active {
		active = "1"
	}
	return Call{"ban", c.keys.bans(), []any{
		b.Net.String(), first.Milliseconds(), longest.Milliseconds(), string(b.Reason), active, b.Note, how, ban.Max,
	}}
}

// Unban ends all bans that overlap a network, and forgets its failures, for an operator. It
// returns the networks that were banned.
func (c *Cluster) Unban(ctx context.Context, net netip.Prefix) (ended []netip.Prefix, err error) {
	named := net.String()
	gone := []any{named} // also without a ban: its failures are forgotten
	err = c.Bans(ctx, func(b ban.Ban) {
		if b.Net.Overlaps(net) && b.Remaining > 0 {
			ended = append(ended, b.Net)
		}
		if b.Net.Overlaps(net) && b.Net != net {
			gone = append(gone, b.Net.String())
		}
	})
	for batch := range slices.Chunk(gone, banBatch) {
		if err == nil {
			err = c.order(ctx, Call{"lift", c.keys.bans(), append([]any{named}, batch...)})
		}
	}
	if err == nil {
		err = c.order(ctx, c.Forget(penalty.Subject{Net: net}))
	}
	return ended, err
}

// CheckUnban returns an error if this Redis user may not run all that Unban runs.
func (c *Cluster) CheckUnban(ctx context.Context, net netip.Prefix) error {
	k := c.keys.bans()
	return c.checkRights(ctx, "HDEL", k[0], "ZREM", k[1], "XADD", k[2], "INCR", k[3], "DEL", c.keys.failed(penalty.Subject{Net: net}))
}

// Bans calls each with every ban, those that have ended included.
func (c *Cluster) Bans(ctx context.Context, each func(ban.Ban)) error {
	for cursor := "0"; ; {
		words, err := c.run(ctx, Call{"bans", c.keys.bans(), []any{cursor}}).Slice()
		if err != nil {
			return err
		}
		if len(words)%3 != 1 {
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
func parseBan(net string, remaining int64, record string) (b ban.Ban, ok bool) {
	f := strings.SplitN(record, " ", 4)
	p, err := netip.ParsePrefix(net)
	if err != nil || len(f) != 4 {
		return b, false
	}
	n, err := strconv.Atoi(f[0])
	return ban.Ban{
		Net: p, Reason: event.BanReason(f[2]), Remaining: clamp(remaining), Count: min(max(n, 0), 64), Active: f[1] == "1", Note: sanitize.Line(f[3], MaxNote),
	}, err == nil
}

// Change is a change of a ban or a user, by a gateway or an operator.
type Change struct {
	Kind    string  // ban, again, lift, forgive
	Subject string  // the network or the user
	Ban     ban.Ban // the network's now; zero if it has none
	at      cursor
}

// cursor is a position among the changes. The zero cursor is before the first read.
type cursor struct {
	n  int64  // the counter of changes
	id string // in the stream
}

// followBans applies the changes of other gateways and operators, and writes bans that Redis
// does not have. It ends with ctx.
func (c *Cluster) followBans(ctx context.Context) {
	var at cursor
	repeat(ctx, followInterval, func(ctx context.Context) {
		next, err := c.followChanges(ctx, at)
		if err == nil {
			at = next
			c.writeBans(ctx)
		}
	})
}

// followChanges applies the changes after a cursor, and returns the next cursor. If some are
// missing all bans are read. Redis has lost what it had if it has fewer changes, or as many and
// others, or none after those it had. Then it gets the bans of this gateway too.
func (c *Cluster) followChanges(ctx context.Context, at cursor) (next cursor, err error) {
	changes, next, err := c.changes(ctx, at)
	if err != nil || next == at {
		return at, err
	}
	isFirst := at.id == ""
	isLost := !isFirst && (next.n <= at.n || len(changes) == 0 || changes[0].at.n <= at.n)
	if isLost {
		c.Table.MarkAllUnwritten()
	}
	if isFirst || isLost || changes[0].at.n > at.n+1 {
		inRedis := make(map[netip.Prefix]bool)
		err = c.Bans(ctx, func(b ban.Ban) {
			inRedis[b.Net] = true
			_ = c.Table.Put(b) // without room: the operator's own bans fill the table
		})
		if err == nil && !isLost {
			c.Table.KeepOnly(inRedis)
		}
		return next, err
	}
	for _, change := range changes {
		c.OnChange(change)
	}
	return changes[len(changes)-1].at, nil
}

// changes returns the changes after a cursor, 500 at most, and the latest cursor.
func (c *Cluster) changes(ctx context.Context, at cursor) (changes []Change, latest cursor, err error) {
	const head, each = 2, 6
	words, err := c.run(ctx, Call{"changes", c.keys.bans(), []any{at.id}}).Slice()
	if err == nil && (len(words) < head || (len(words)-head)%each != 0) {
		err = errForm
	}
	if err != nil {
		return nil, at, err
	}
	for w := words[head:]; len(w) > 0; w = w[each:] {
		change := Change{Kind: text(w[2]), Subject: text(w[3]), at: cursor{number(w[1]), text(w[0])}}
		change.Ban, _ = parseBan(change.Subject, number(w[4]), text(w[5]))
		changes = append(changes, change)
	}
	return changes, cursor{number(words[0]), text(words[1])}, nil
}

// clamp converts ms from Redis, which may be anything.
func clamp(ms int64) time.Duration {
	return time.Duration(min(max(ms, -MaxDuration.Milliseconds()), MaxDuration.Milliseconds())) * time.Millisecond
}

func number(x any) int64 { n, _ := x.(int64); return n }
func text(x any) string  { s, _ := x.(string); return s }
