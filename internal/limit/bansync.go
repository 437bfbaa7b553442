package limit

import (
	"context"
	"net/netip"
	"time"

	"imapgate/internal/cluster"
	"imapgate/internal/event"
	"imapgate/internal/limit/penalty"
	"imapgate/internal/sleep"
)

const (
	// followInterval is how often a gateway asks for changes, so that a ban holds everywhere
	// within a second.
	followInterval = 500 * time.Millisecond
	// writeBatch is how many bans that Redis does not have are written at once.
	writeBatch = 500
)

// ban bans a network here and everywhere, and the /48 around it when it has too many banned
// ones.
func (l *Limiter) ban(ctx context.Context, net netip.Prefix, reason event.BanReason) {
	settings, around := &l.cfg.Failures, penalty.UserNet(net.Addr())
	isActive := net.Bits() < around.Bits() || l.known.IsActive(around) || l.isActiveElsewhere(ctx, around)
	b, isNew := l.bans.Impose(Ban{Net: net, Reason: reason, Active: isActive}, settings.BanDuration, settings.MaxBanDuration)
	if !isNew {
		return
	}
	if l.cluster != nil {
		longer, err := l.cluster.Ban(ctx, b, settings.BanDuration, settings.MaxBanDuration)
		if err == nil {
			b = longer
			_ = l.bans.Put(b) // it has its place already
		} else {
			l.bans.MarkUnwritten(net)
		}
	}
	l.hooks.OnBan(b)
	if up, ok := l.bans.CrowdedParent(net); ok {
		l.ban(ctx, up, event.BanNeighbors)
	}
}

// isActiveElsewhere asks whether any user has logged in from a network at any gateway.
func (l *Limiter) isActiveElsewhere(ctx context.Context, net netip.Prefix) bool {
	if l.cluster == nil {
		return false
	}
	known, _ := l.cluster.Known(ctx, l.cfg.Failures.KnownFor, penalty.Subject{Net: net})
	return len(known) > 0
}

// followBans takes over what other gateways and operators ban and lift, and writes bans that
// Redis does not have. It ends with ctx.
func (l *Limiter) followBans(ctx context.Context) {
	var at cluster.Cursor
	for ctx.Err() == nil {
		if next, err := l.followChanges(ctx, at); err == nil {
			at = next
			if bans := l.bans.TakeUnwritten(writeBatch); len(bans) > 0 {
				l.bans.MarkUnwritten(l.cluster.WriteBans(ctx, bans)...)
			}
		}
		_ = sleep.For(ctx, jitter(followInterval))
	}
}

// followChanges applies the changes after a cursor. If some are missing all bans are read. If
// Redis has lost what it knew, it gets those of this gateway too.
func (l *Limiter) followChanges(ctx context.Context, at cluster.Cursor) (cluster.Cursor, error) {
	changes, next, progress, err := l.cluster.Changes(ctx, at)
	if err != nil {
		return at, err
	}
	if progress == cluster.Lost {
		l.bans.MarkAllUnwritten()
	}
	if progress != cluster.Complete {
		inRedis := make(map[netip.Prefix]bool)
		err = l.cluster.Bans(ctx, func(b Ban) {
			inRedis[b.Net] = true
			_ = l.bans.Put(b) // without room: the operator's own bans fill the table
		})
		if err == nil && progress == cluster.Gap {
			l.bans.KeepOnly(inRedis)
		}
		return next, err
	}
	for _, change := range changes {
		l.applyChange(change)
	}
	return next, nil
}

// applyChange takes over one change. One that cannot be read is for another version.
func (l *Limiter) applyChange(change cluster.Change) {
	if change.Kind == "forgive" {
		if u, err := l.cfg.Names.Canonicalize(change.Subject); err == nil && u.String() == change.Subject {
			l.failures.ForgetUser(u)
		}
		return
	}
	net, err := netip.ParsePrefix(change.Subject)
	if err != nil {
		return
	}
	if b := change.Ban; change.Kind == "lift" {
		l.lift(net)
	} else if b.Net.IsValid() { // "again": the order is on record already
		if change.Kind == "ban" && b.Reason == event.BanOperator {
			l.hooks.OnBanRequest(BanRequest{Net: net, Duration: max(0, b.Remaining), Note: b.Note})
		}
		_ = l.bans.Put(b)
	}
}

// lift ends bans and forgets failures here, and reports the bans that had not ended. The
// gateway that has given the order gets it from Redis again, when there is nothing left.
func (l *Limiter) lift(net netip.Prefix) []netip.Prefix {
	lifted := l.bans.Lift(net)
	l.failures.ForgetNet(net)
	for _, n := range lifted {
		l.hooks.OnBanRequest(BanRequest{Net: n})
	}
	return lifted
}
