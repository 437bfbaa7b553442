package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin/legacy"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/proxy"
)

func limitConfig(cfg *config.Config) limit.Config {
	out := limit.Config{
		Names: cfg.Auth.NameRules, Settings: capDelay(cfg.Limits.Settings, cfg.Limits.PreauthTimeout),
		Listeners: make(map[string]limit.Settings), Preauth: proxy.PreauthLimit(cfg.Limits.MaxConnections),
	}
	if cfg.Redis != nil {
		out.Prefix = cfg.Redis.Prefix
	}
	for _, l := range cfg.Listeners {
		if l.Limits != nil {
			out.Listeners[l.Name] = capDelay(cfg.LimitsOf(l), cfg.Limits.PreauthTimeout)
		}
	}
	return out
}

// capDelay shortens the delay of an answer, which must come before the login times out.
func capDelay(s limit.Settings, preauthTimeout time.Duration) limit.Settings {
	f := &s.Failures
	f.MaxDelay = min(f.MaxDelay, preauthTimeout/4)
	f.Delay = min(f.Delay, f.MaxDelay)
	return s
}

// openLimits runs after openRoutes, which creates the Redis client, and openAudit.
func (g *Gateway) openLimits() (err error) {
	hooks := limit.Hooks{OnBan: g.recordBan, OnBanRequest: g.recordOperatorBan, OnSpray: g.recordSpray, OnRedis: setter(g.metrics.Limits.ClusterConnected)}
	if g.limits, err = limit.New(limitConfig(g.cfg), g.redis, hooks, g.log); err != nil {
		return config.WithKey("limits", err)
	}
	g.metrics.Limits.ClusterConnected.Set(0) // until a command to Redis succeeds
	g.metrics.ObserveBans(g.limits.BanCount)
	return nil
}

// recordBan records an automatic ban.
func (g *Gateway) recordBan(b limit.Ban) {
	g.log.Info("banned", zap.Stringer("network", b.Net), zap.String("why", string(b.Reason)), zap.Duration("for", b.Remaining))
	g.logLostRecord(event.BanAdded, g.audit.BanAdded(&audit.Ban{
		Subject: b.Net.String(), Reason: b.Reason, Until: time.Now().Add(b.Remaining), Note: b.Note,
	}))
}

// recordOperatorBan records a change by an operator. Every gateway records it,
// wherever the operator made it.
func (g *Gateway) recordOperatorBan(o limit.BanRequest) {
	ban := audit.Ban{Subject: o.Net.String(), Reason: event.BanOperator, Operator: "operator", Note: o.Note}
	if o.Duration == 0 {
		g.log.Info("ban removed by an operator", zap.Stringer("network", o.Net))
		g.logLostRecord(event.BanRemoved, g.audit.BanRemoved(&ban))
		return
	}
	ban.Until = time.Now().Add(o.Duration)
	g.log.Info("banned by an operator", zap.Stringer("network", o.Net), zap.Duration("for", o.Duration))
	g.logLostRecord(event.BanAdded, g.audit.BanAdded(&ban))
}

// recordSpray records the suspicion that a few passwords are being tried for many
// users.
func (g *Gateway) recordSpray(s limit.Spray) {
	if !s.Suspected {
		g.log.Info("password spraying no longer suspected")
		return
	}
	g.metrics.Limits.SprayDetections.Inc()
	g.log.Warn("password spraying suspected: logins from networks without known users are delayed", zap.Int("users", s.Users))
	subject := ""
	if s.Net.IsValid() {
		subject = s.Net.String()
	}
	g.logLostRecord(event.SpraySuspected, g.audit.SpraySuspected(&audit.Spray{Users: s.Users, Subject: subject, Window: time.Minute}))
}

// logLostRecord logs that the record of an event could not be written.
func (g *Gateway) logLostRecord(e event.Event, err error) {
	if err != nil {
		g.log.Warn("audit record lost", zap.String("event", string(e)), zap.Error(err))
	}
}

// LimitAdmin shows limits and changes bans, in a running gateway or for a command
// that uses Redis directly.
type LimitAdmin struct {
	// Set once.
	gate      *limit.Limiter
	nameRules identity.Names
	failures  limit.Failures
	exempt    []netip.Prefix
}

func newLimitAdmin(cfg *config.Config, gate *limit.Limiter) *LimitAdmin {
	return &LimitAdmin{gate: gate, nameRules: cfg.Auth.NameRules, failures: cfg.Limits.Failures, exempt: cfg.Limits.ExemptNetworks}
}

func newBanEntry(b limit.Ban) legacy.Ban {
	return legacy.Ban{
		Network: b.Net.String(), Reason: string(b.Reason), Until: time.Now().Add(b.Remaining).UTC().Truncate(time.Second), Count: b.Count, Note: b.Note,
	}
}

// ListBans returns all bans.
func (l *LimitAdmin) ListBans(ctx context.Context, _ legacy.None) ([]legacy.Ban, error) {
	all, err := l.gate.Bans(ctx)
	lines := make([]legacy.Ban, 0, len(all))
	for _, b := range all {
		lines = append(lines, newBanEntry(b))
	}
	return lines, err
}

// AddBan adds or replaces an operator's ban.
func (l *LimitAdmin) AddBan(ctx context.Context, o legacy.BanRequest) (legacy.Ban, error) {
	net, err := limit.ParseNet(o.Subject)
	if err != nil {
		return legacy.Ban{}, fmt.Errorf("%w: %w", legacy.ErrBadRequest, err)
	}
	length := time.Duration(o.Duration)
	if err := l.gate.Ban(ctx, net, length, o.Note); errors.Is(err, limit.ErrNetworkTooWide) || errors.Is(err, limit.ErrBanDuration) {
		return legacy.Ban{}, fmt.Errorf("%w: %w", legacy.ErrBadRequest, err)
	} else if err != nil {
		return legacy.Ban{}, err
	}
	added := newBanEntry(limit.Ban{Net: net, Reason: event.BanOperator, Remaining: length, Count: 1, Note: o.Note})
	for _, exempt := range l.exempt {
		if exempt.Overlaps(net) {
			added.Exempt = append(added.Exempt, exempt.String())
		}
	}
	return added, nil
}

// RemoveBans removes the bans of an address or a network.
func (l *LimitAdmin) RemoveBans(ctx context.Context, subject string) (legacy.RemovedBans, error) {
	net, err := limit.ParseNet(subject)
	if err != nil {
		return legacy.RemovedBans{}, fmt.Errorf("%w: %w", legacy.ErrBadRequest, err)
	}
	nets, err := l.gate.Unban(ctx, net)
	done := legacy.RemovedBans{Networks: make([]string, 0, len(nets))}
	for _, n := range nets {
		done.Networks = append(done.Networks, n.String())
	}
	return done, err
}

// ShowLimits returns the status of an address, or of a user if subject is not an
// address.
func (l *LimitAdmin) ShowLimits(ctx context.Context, subject string) (legacy.LimitStatus, error) {
	if a, err := netip.ParseAddr(subject); err == nil {
		return l.showAddressLimits(ctx, a)
	}
	u, err := l.parseUser(subject)
	if err != nil {
		return legacy.LimitStatus{}, err
	}
	counts, err := l.gate.InspectUser(ctx, u)
	if err != nil {
		return legacy.LimitStatus{}, err
	}
	s := legacy.LimitStatus{Subject: u.String(), Sessions: counts.Sessions, Delay: counts.Delay, KnownNetworksOnly: counts.KnownOnly}
	s.Failures = []legacy.FailureCount{
		{Subject: u.String(), Window: "hour", Count: counts.Hour, Limit: l.failures.PerUserHour},
		{Subject: u.String(), Window: "day", Count: counts.Day, Limit: l.failures.PerUserDay},
	}
	if counts.UploadsCounted {
		s.Uploads = &legacy.UploadCount{Today: counts.Uploaded, Limit: counts.UploadLimit}
	}
	for _, k := range counts.Known {
		s.KnownNetworks = append(s.KnownNetworks, legacy.KnownNetwork{
			Network: k.Net.String(), Last: time.Now().Add(-k.Ago).UTC().Truncate(time.Second), Failures: k.Hour,
		})
	}
	return s, nil
}

func (l *LimitAdmin) parseUser(name string) (user, error) {
	u, err := l.nameRules.Canonicalize(name)
	if err != nil {
		return u, fmt.Errorf("%w: neither an address nor a valid user name", legacy.ErrBadRequest)
	}
	return u, nil
}

// ResetLimits resets the failed logins of a user.
func (l *LimitAdmin) ResetLimits(ctx context.Context, subject string) (legacy.LimitsReset, error) {
	if _, err := limit.ParseNet(subject); err == nil {
		return legacy.LimitsReset{}, fmt.Errorf("%w: an address is not a user; imapgate ban del resets its failed logins", legacy.ErrBadRequest)
	}
	u, err := l.parseUser(subject)
	if err != nil {
		return legacy.LimitsReset{}, err
	}
	return legacy.LimitsReset{User: u.String()}, l.gate.ResetUser(ctx, u)
}

func (l *LimitAdmin) showAddressLimits(ctx context.Context, a netip.Addr) (legacy.LimitStatus, error) {
	counts, err := l.gate.InspectAddress(ctx, a)
	if err != nil {
		return legacy.LimitStatus{}, err
	}
	s := legacy.LimitStatus{Subject: counts.AddrNet.String(), Exempt: counts.Exempt, Sessions: counts.Sessions, Delay: counts.Delay}
	if counts.Ban != nil {
		line := newBanEntry(*counts.Ban)
		s.Ban = &line
	}
	for _, t := range counts.Tiers {
		s.Failures = append(s.Failures, legacy.FailureCount{Subject: t.Net.String(), Window: "minute", Count: t.Minute, Limit: t.PerMinute},
			legacy.FailureCount{Subject: t.Net.String(), Window: "day", Count: t.Day, Limit: t.PerDay})
	}
	return s, nil
}
