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

// liftBatch is how many bans one script ends.
const liftBatch = 500

// How a ban is imposed, for the ban script: by a gateway, by an operator, or by an operator's
// order that another gateway may have given to Redis already.
const (
	automatic = "many"
	ordered   = "order"
	again     = "again"
)

// Ban bans a network at all gateways for first, twice as long for each earlier ban, up to
// longest. It returns the ban that holds.
func (c *Cluster) Ban(ctx context.Context, b ban.Ban, first, longest time.Duration) (ban.Ban, error) {
	words, err := c.run(ctx, c.banCall(b, automatic, first, longest)).Slice()
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

// WriteBans writes bans that Redis has not or has lost. Of several gateways that do so the
// first is believed. It returns those of which it is not known whether Redis has them.
func (c *Cluster) WriteBans(ctx context.Context, bans []ban.Ban) (unwritten []netip.Prefix) {
	calls := make([]Call, len(bans))
	for i, b := range bans {
		how := automatic
		if b.Reason == event.BanOperator {
			how = again
		}
		calls[i] = c.banCall(b, how, b.Remaining, b.Remaining)
	}
	replies, _ := c.ask(ctx, calls...) // each has its own error
	for i, r := range replies {
		if r.Err() != nil && !isAnswer(r.Err()) {
			unwritten = append(unwritten, bans[i].Net)
		}
	}
	return unwritten
}

func (c *Cluster) banCall(b ban.Ban, how string, first, longest time.Duration) Call {
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
	err = c.Bans(ctx, func(b ban.Ban) {
		if b.Net.Overlaps(net) && b.Remaining > 0 {
			ended = append(ended, b.Net)
		}
		if b.Net.Overlaps(net) && b.Net != net {
			gone = append(gone, b.Net.String())
		}
	})
	for batch := range slices.Chunk(gone, liftBatch) {
		if err == nil {
			err = c.order(ctx, Call{"lift", c.keys.bans(), batch})
		}
	}
	if err == nil {
		err = c.order(ctx, c.forgetNet(net))
	}
	return ended, err
}

// forgetNet returns the call that forgets the failures of a network.
func (c *Cluster) forgetNet(net netip.Prefix) Call {
	return Call{"delete", []string{c.keys.failed(penalty.Subject{Net: net})}, nil}
}

// CheckUnban returns an error if this Redis user may not run all that Unban runs.
func (c *Cluster) CheckUnban(ctx context.Context, net netip.Prefix) error {
	k := c.keys.bans()
	return c.checkRights(ctx, "HDEL", k[0], "ZREM", k[1], "XADD", k[2], "INCR", k[3], "DEL", c.forgetNet(net).keys[0])
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
	left := time.Duration(max(remaining, -MaxDuration.Milliseconds())) * time.Millisecond
	if remaining > 0 {
		left = clamp(remaining)
	}
	return ban.Ban{
		Net: p, Reason: event.BanReason(f[2]), Remaining: left, Count: min(max(n, 0), 64), Active: f[1] == "1", Note: sanitize.Line(f[3], MaxNote),
	}, err == nil
}

// Change is a change of a ban or a user, by a gateway or an operator.
type Change struct {
	Kind    string  // ban, again, lift, forgive
	Subject string  // the network or the user
	Ban     ban.Ban // the network's now; zero if it has none
	at      Cursor
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
	const head, each = 2, 6
	words, err := c.run(ctx, Call{"changes", c.keys.bans(), []any{at.id}}).Slice()
	if err == nil && (len(words) < head || (len(words)-head)%each != 0) {
		err = errForm
	}
	if err != nil {
		return nil, at, Complete, err
	}
	for w := words[head:]; len(w) > 0; w = w[each:] {
		change := Change{Kind: text(w[2]), Subject: text(w[3]), at: Cursor{number(w[1]), text(w[0])}}
		change.Ban, _ = parseBan(change.Subject, number(w[4]), text(w[5]))
		changes = append(changes, change)
	}
	next = Cursor{number(words[0]), text(words[1])}
	switch {
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

// clamp converts ms from Redis, which may be anything.
func clamp(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), MaxDuration.Milliseconds())) * time.Millisecond
}

func number(x any) int64 { n, _ := x.(int64); return n }
func text(x any) string  { s, _ := x.(string); return s }
