package limit

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/event"
	"imapgate/internal/sleep"
)

const (
	// followEvery is how often a gateway asks for changes: so that a ban holds
	// everywhere within a second.
	followEvery = 500 * time.Millisecond
	// longestBan is what any time from Redis is cut down to.
	longestBan = 10 * 365 * 24 * time.Hour
)

// ban bans a network here and everywhere, and the network around it when it has
// too many banned ones.
func (g *Limiter) ban(ctx context.Context, net netip.Prefix, why event.BanReason) {
	around := near(net.Addr()) // of a wider one nobody knows who lives in it
	lived := net.Bits() < around.Bits() || g.good.lived(around, g.now()) || g.livedElsewhere(ctx, around)
	e := entry{why: why, lived: lived}
	b, fresh := g.bans.impose(net, e, &g.cfg.Failures, g.now())
	if !fresh {
		return
	}
	if longer, ok := g.banEverywhere(ctx, b); ok {
		b = longer
		e.until, e.count = g.now()+b.Remaining, b.Count
		_ = g.bans.put(net, e, g.now()) // it has its place already
	} else if g.shared != nil {
		g.bans.owe(net)
	}
	g.hooks.OnBan(b)
	if up, ok := g.bans.crowded(net, g.now()); ok {
		g.ban(ctx, up, event.BanNeighbors)
	}
}

// livedElsewhere asks whether anybody has logged in from a network of late, at any
// gateway.
func (g *Limiter) livedElsewhere(ctx context.Context, net netip.Prefix) bool {
	s := g.shared
	if s == nil {
		return false
	}
	keep := g.cfg.Failures.KnownFor.Milliseconds()
	r, err := s.ask(ctx, call{s.scripts.known, []string{s.keys.lived(net)}, []any{"", keep}})
	if err != nil {
		return false
	}
	yes, err := r[0].Int()
	return err == nil && yes == 1
}

// banEverywhere tells the other gateways of a ban. They may know of earlier ones of
// that network, which make it longer.
func (g *Limiter) banEverywhere(ctx context.Context, b Ban) (Ban, bool) {
	s := g.shared
	if s == nil {
		return b, false
	}
	r, err := s.ask(ctx, s.banCall(b, asMany, g.cfg.Failures.BanDuration, g.cfg.Failures.MaxBanDuration))
	if err != nil {
		return b, false
	}
	words, err := r[0].Slice()
	if err != nil || len(words) != 4 {
		return b, false
	}
	left, ok1 := words[1].(int64)
	count, ok2 := words[2].(int64)
	if !ok1 || !ok2 {
		return b, false
	}
	b.Remaining, b.Count = clamped(left), int(count)
	return b, true
}

// How banScript is to ban.
const (
	asMany   = "many"  // for first, doubled for each ban before up to longest
	asOrder  = "order" // for exactly first, whatever there was
	asBefore = "again" // the same, but another gateway may have said so already
)

// banCall is one ban for Redis.
func (s *shared) banCall(b Ban, how string, first, longest time.Duration) call {
	lived := "0"
	if b.Active {
		lived = "1"
	}
	return call{s.scripts.ban, s.keys.bans(), []any{
		b.Net.String(), first.Milliseconds(), longest.Milliseconds(), string(b.Reason), lived, b.Note, how, maxBans,
	}}
}

// clamped is a time from Redis, in ms, that may not be one.
func clamped(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), longestBan.Milliseconds())) * time.Millisecond
}

// change is what happened to a network or a user.
type change struct {
	place, kind, who string
	n, left          int64
	record           string
}

// cursor is how far this gateway has followed the changes.
type cursor struct {
	n     int64  // the counter
	place string // in the stream; "" before the first full read
}

// follow takes over what the other gateways and operators ban and lift; it ends
// with ctx.
func (g *Limiter) follow(ctx context.Context) {
	var at cursor
	for ctx.Err() == nil {
		if next, err := g.catchUp(ctx, at); err == nil {
			at = next
			g.sayOwed(ctx)
		}
		_ = sleep.For(ctx, jitter(followEvery))
	}
}

// catchUp applies the changes behind a cursor. When some are missing, everything
// is read again. When Redis has lost what it knew, it is told too: it has fewer
// changes than it had, or as many and others, or none behind those it had.
func (g *Limiter) catchUp(ctx context.Context, at cursor) (cursor, error) {
	s := g.shared
	r, err := s.ask(ctx, call{s.scripts.changes, s.keys.bans(), []any{at.place}})
	if err != nil {
		return at, err
	}
	now, changes, err := parseChanges(r[0])
	if err != nil {
		return at, err
	}
	switch {
	case at.place == "":
		return now, g.readAll(ctx, g.bans.keepOnly)
	case now == at:
		return at, nil
	case now.n <= at.n || len(changes) == 0 || changes[0].n <= at.n:
		g.bans.oweAll()
		return now, g.readAll(ctx, func(map[netip.Prefix]bool) {})
	case changes[0].n > at.n+1:
		return now, g.readAll(ctx, g.bans.keepOnly)
	}
	for _, c := range changes {
		g.apply(c)
		at = cursor{c.n, c.place}
	}
	return at, nil
}

func parseChanges(reply *redis.Cmd) (now cursor, changes []change, err error) {
	words, err := reply.Slice()
	if err != nil {
		return now, nil, err
	}
	const head, each = 2, 6
	if len(words) < head || (len(words)-head)%each != 0 {
		return now, nil, errForm
	}
	now.n, now.place = number(words[0]), text(words[1])
	for w := words[head:]; len(w) > 0; w = w[each:] {
		changes = append(changes, change{
			place: text(w[0]), n: number(w[1]), kind: text(w[2]), who: text(w[3]), left: number(w[4]), record: text(w[5]),
		})
	}
	return now, changes, nil
}

func number(x any) int64 { n, _ := x.(int64); return n }
func text(x any) string  { s, _ := x.(string); return s }

// apply takes one change over. What cannot be read is not for this version.
func (g *Limiter) apply(c change) {
	if c.kind == "forgive" {
		if u, err := g.cfg.Names.Canonicalize(c.who); err == nil && u.String() == c.who {
			g.past.forgiveUser(u)
		}
		return
	}
	net, err := netip.ParsePrefix(c.who)
	if err != nil {
		return
	}
	switch c.kind {
	case "lift":
		g.lift(net)
	case "again":
		g.takeOver(net, c.left, c.record) // the order is on record already
	case "ban":
		if e, ok := parseEntry(c.record); ok && e.why == event.BanOperator {
			g.hooks.OnBanRequest(BanRequest{Net: net, Duration: clamped(c.left), Note: e.note})
		}
		g.takeOver(net, c.left, c.record)
	}
}

// takeOver enters a ban of somebody else's.
func (g *Limiter) takeOver(net netip.Prefix, left int64, record string) {
	if e, ok := parseEntry(record); ok && left > -remembered.Milliseconds() {
		e.until = g.now() + time.Duration(min(left, longestBan.Milliseconds()))*time.Millisecond
		_ = g.bans.put(net, e, g.now()) // without room: the operator's own bans fill the table
	}
}

// parseEntry reads "count lived why note".
func parseEntry(record string) (e entry, ok bool) {
	f := strings.SplitN(record, " ", 4)
	if len(f) != 4 {
		return e, false
	}
	n, err := strconv.Atoi(f[0])
	return entry{count: min(max(n, 0), 64), lived: f[1] == "1", why: event.BanReason(f[2]), note: oneLine(f[3])}, err == nil
}

// readAll enters all bans that Redis has; and settles what it has not.
func (g *Limiter) readAll(ctx context.Context, settle func(there map[netip.Prefix]bool)) error {
	there := make(map[netip.Prefix]bool)
	err := g.shared.eachBan(ctx, func(net netip.Prefix, left int64, record string) {
		there[net] = true
		g.takeOver(net, left, record)
	})
	if err == nil {
		settle(there)
	}
	return err
}

// eachBan goes through all bans in Redis, page by page.
func (s *shared) eachBan(ctx context.Context, each func(net netip.Prefix, left int64, record string)) error {
	place := "0"
	for {
		r, err := s.ask(ctx, call{s.scripts.bans, s.keys.bans(), []any{place}})
		if err != nil {
			return err
		}
		words, err := r[0].Slice()
		if err != nil || len(words)%3 != 1 {
			return errForm
		}
		for w := words[1:]; len(w) > 0; w = w[3:] {
			if net, err := netip.ParsePrefix(text(w[0])); err == nil {
				each(net, number(w[1]), text(w[2]))
			}
		}
		if place = text(words[0]); place == "0" {
			return nil
		}
	}
}

// sayOwed tells Redis of bans that it could not be told of when they were imposed,
// or has lost. Of several gateways that do so the first is believed, and the others
// change nothing.
func (g *Limiter) sayOwed(ctx context.Context) {
	s, owed := g.shared, g.bans.owed(g.now())
	if len(owed) == 0 {
		return
	}
	calls := make([]call, len(owed))
	for i, b := range owed {
		how := asMany
		if b.Reason == event.BanOperator {
			how = asBefore
		}
		calls[i] = s.banCall(b, how, b.Remaining, b.Remaining)
	}
	replies, err := s.ask(ctx, calls...)
	for i, b := range owed {
		if replies != nil { // else err is everybody's
			_, err = replies[i].Slice()
		}
		if err != nil && !answered(err) {
			g.bans.owe(b.Net)
		}
	}
}
