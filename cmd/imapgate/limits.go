package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/proxy"
)

// limitConfig returns the settings of package limit.
func limitConfig(cfg *config.Config) limit.Config {
	l := cfg.Limits
	defaults := listenerLimits(l, config.Listener{})
	out := limit.Config{
		Names:       cfg.Auth.NameRules,
		Connections: defaults.Connections, Failures: defaults.Failures, UserQuota: defaults.UserQuota, ExemptNetworks: defaults.ExemptNetworks,
		Listeners: make(map[string]limit.Listener, len(cfg.Listeners)),
		Preauth:   proxy.PreauthLimit(cfg.Limits.MaxConnections),
	}
	if cfg.Redis != nil {
		out.Prefix = cfg.Redis.Prefix
	}
	for _, listener := range cfg.Listeners {
		if listener.Limits != nil {
			out.Listeners[listener.Name] = listenerLimits(l, listener)
		}
	}
	return out
}

// listenerLimits returns the limits of a listener.
func listenerLimits(l config.Limits, listener config.Listener) limit.Listener {
	c, f, b := l.Connections.ForListener(listener), l.Failures.ForListener(listener), l.UserQuota.ForListener(listener)
	// The answer must come before the login times out.
	maxDelay := min(f.MaxDelay, l.PreauthTimeout/4)
	f.Delay, f.MaxDelay = min(f.Delay, maxDelay), maxDelay
	return limit.Listener{
		Connections: limit.Connections(c), Failures: limit.Failures(f), UserQuota: limit.UserQuota(b), ExemptNetworks: l.ExemptNetworksFor(listener),
	}
}

// openLimits runs after openRoutes, which creates the Redis client, and openAudit.
func (g *gateway) openLimits() (err error) {
	hooks := limit.Hooks{OnBan: g.recordBan, OnBanRequest: g.recordOperatorBan, OnSpray: g.recordSpray, OnRedis: g.setClusterConnected}
	if g.limits, err = limit.New(limitConfig(g.cfg), g.redis, hooks, g.log); err != nil {
		return config.WithKey("limits", err)
	}
	g.setClusterConnected(false) // until a command to Redis succeeds
	g.metrics.ObserveBans(g.limits.BanCount)
	return nil
}

// recordBan records an automatic ban.
func (g *gateway) recordBan(b limit.Ban) {
	g.log.Info("banned", zap.Stringer("network", b.Net), zap.String("why", string(b.Reason)), zap.Duration("for", b.Remaining))
	g.logLostRecord(event.BanAdded, g.audit.BanAdded(&audit.Ban{
		Subject: b.Net.String(), Reason: b.Reason, Until: time.Now().Add(b.Remaining), Note: b.Note,
	}))
}

// recordOperatorBan records a change by an operator. Every gateway records it,
// wherever the operator made it.
func (g *gateway) recordOperatorBan(o limit.BanRequest) {
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
func (g *gateway) recordSpray(s limit.Spray) {
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

// setClusterConnected sets the metric for limits that are counted together with
// other gateways.
func (g *gateway) setClusterConnected(connected bool) {
	g.metrics.Limits.ClusterConnected.Set(0)
	if connected {
		g.metrics.Limits.ClusterConnected.Set(1)
	}
}

// logLostRecord logs that the record of an event could not be written.
func (g *gateway) logLostRecord(e event.Event, err error) {
	if err != nil {
		g.log.Warn("audit record lost", zap.String("event", string(e)), zap.Error(err))
	}
}

// newAdminLimits returns the functions of the admin address for limits and bans.
func (g *gateway) newAdminLimits() admin.Limits {
	a := newLocalAdmin(g.cfg, g.limits)
	return admin.Limits{
		ShowLimits: func(ctx context.Context, subject string) (any, error) { return a.showLimits(ctx, subject) },
		ResetLimits: func(ctx context.Context, subject string) (any, error) {
			done, err := a.resetLimits(ctx, subject)
			g.recordAdminAction(event.ActionLimitsReset, subject, err)
			return done, err
		},
		ListBans: func(ctx context.Context) (any, error) { return a.listBans(ctx) },
		AddBan: func(ctx context.Context, o admin.BanRequest) (any, error) {
			done, err := a.addBan(ctx, o)
			g.recordAdminAction(event.ActionBan, o.Subject, err)
			return done, err
		},
		RemoveBans: func(ctx context.Context, subject string) (any, error) {
			done, err := a.removeBans(ctx, subject)
			g.recordAdminAction(event.ActionUnban, subject, err)
			return done, err
		},
	}
}

// recordAdminAction records an operator's command that came through the admin
// address.
func (g *gateway) recordAdminAction(action event.Action, subject string, err error) {
	g.logLostRecord(event.OperatorAction, g.audit.OperatorAction(&audit.OperatorAction{Action: action, Operator: "admin", Subject: subject, Err: err}))
}

// localAdmin shows limits and changes bans, in a running gateway or for a command
// that uses Redis directly.
type localAdmin struct {
	// Set once.
	gate      *limit.Limiter
	nameRules identity.Names
	failures  config.Failures
}

func newLocalAdmin(cfg *config.Config, gate *limit.Limiter) *localAdmin {
	return &localAdmin{gate: gate, nameRules: cfg.Auth.NameRules, failures: cfg.Limits.Failures}
}

// banEntry is the JSON form of a ban.
type banEntry struct {
	Network string    `json:"network"`
	Reason  string    `json:"why"`
	Until   time.Time `json:"until"`
	Count   int       `json:"count"` // ordinal of this ban of the network, from 1
	Note    string    `json:"note,omitempty"`
}

func newBanEntry(b limit.Ban) banEntry {
	return banEntry{b.Net.String(), string(b.Reason), time.Now().Add(b.Remaining).UTC().Truncate(time.Second), b.Count, b.Note}
}

func (l *localAdmin) listBans(ctx context.Context) ([]banEntry, error) {
	all, err := l.gate.Bans(ctx)
	lines := make([]banEntry, 0, len(all))
	for _, b := range all {
		lines = append(lines, newBanEntry(b))
	}
	return lines, err
}

func (l *localAdmin) addBan(ctx context.Context, o admin.BanRequest) (banEntry, error) {
	net, err := limit.ParseNet(o.Subject)
	if err != nil {
		return banEntry{}, fmt.Errorf("%w: %w", admin.ErrBadRequest, err)
	}
	if err := l.gate.Ban(ctx, net, o.Duration, o.Note); errors.Is(err, limit.ErrNetworkTooWide) || errors.Is(err, limit.ErrBanDuration) {
		return banEntry{}, fmt.Errorf("%w: %w", admin.ErrBadRequest, err)
	} else if err != nil {
		return banEntry{}, err
	}
	return newBanEntry(limit.Ban{Net: net, Reason: event.BanOperator, Remaining: o.Duration, Count: 1, Note: o.Note}), nil
}

// removedBans is the result of removing bans.
type removedBans struct {
	Networks []string `json:"networks"`
}

func (l *localAdmin) removeBans(ctx context.Context, subject string) (removedBans, error) {
	net, err := limit.ParseNet(subject)
	if err != nil {
		return removedBans{}, fmt.Errorf("%w: %w", admin.ErrBadRequest, err)
	}
	nets, err := l.gate.Unban(ctx, net)
	done := removedBans{Networks: make([]string, 0, len(nets))}
	for _, n := range nets {
		done.Networks = append(done.Networks, n.String())
	}
	return done, err
}

// limitStatus is the status of a user or an address.
type limitStatus struct {
	Subject           string         `json:"subject"`
	Exempt            bool           `json:"exempt,omitempty"`
	Sessions          int            `json:"sessions"`
	Delay             time.Duration  `json:"delay_ns"` // of the next login; for a user, from an unknown network
	Ban               *banEntry      `json:"ban,omitempty"`
	Failures          []failureCount `json:"failures"`
	KnownNetworksOnly bool           `json:"known_networks_only,omitempty"` // because of the user's failures
	KnownNetworks     []knownNetwork `json:"known_networks,omitempty"`
	Uploads           *uploadCount   `json:"uploads,omitempty"` // of a user, if there is a bound
}

// uploadCount is the upload quota of a user, in bytes of messages per UTC day.
type uploadCount struct {
	Today int64 `json:"today"`
	Limit int64 `json:"most"` // 0: no bound
}

// failureCount is the number of failed logins in a window.
type failureCount struct {
	Subject string `json:"of"`
	Window  string `json:"in"`
	Count   int    `json:"count"`
	Limit   int    `json:"most,omitempty"` // 0: no bound
}

// knownNetwork is a network from which a user has logged in recently.
type knownNetwork struct {
	Network  string    `json:"network"`
	Last     time.Time `json:"last"`
	Failures int       `json:"failures_in_an_hour"`
}

// showLimits returns the status of an address, or of a user if subject is not an
// address.
func (l *localAdmin) showLimits(ctx context.Context, subject string) (limitStatus, error) {
	if a, err := netip.ParseAddr(subject); err == nil {
		return l.showAddressLimits(ctx, a)
	}
	u, err := l.parseUser(subject)
	if err != nil {
		return limitStatus{}, err
	}
	counts, err := l.gate.InspectUser(ctx, u)
	if err != nil {
		return limitStatus{}, err
	}
	s := limitStatus{Subject: u.String(), Sessions: counts.Sessions, Delay: counts.Delay, KnownNetworksOnly: counts.KnownOnly}
	s.Failures = []failureCount{
		{u.String(), "hour", counts.Hour, l.failures.PerUserHour}, {u.String(), "day", counts.Day, l.failures.PerUserDay},
	}
	if counts.UploadsCounted {
		s.Uploads = &uploadCount{counts.Uploaded, counts.UploadLimit}
	}
	for _, k := range counts.Known {
		s.KnownNetworks = append(s.KnownNetworks, knownNetwork{k.Net.String(), time.Now().Add(-k.Ago).UTC().Truncate(time.Second), k.Hour})
	}
	return s, nil
}

func (l *localAdmin) parseUser(name string) (user, error) {
	u, err := l.nameRules.Canonicalize(name)
	if err != nil {
		return u, fmt.Errorf("%w: neither an address nor a valid user name", admin.ErrBadRequest)
	}
	return u, nil
}

// limitsReset is the result of a reset.
type limitsReset struct {
	User string `json:"user"`
}

func (l *localAdmin) resetLimits(ctx context.Context, subject string) (limitsReset, error) {
	u, err := l.parseUser(subject)
	if err != nil {
		return limitsReset{}, err
	}
	return limitsReset{u.String()}, l.gate.ResetUser(ctx, u)
}

func (l *localAdmin) showAddressLimits(ctx context.Context, a netip.Addr) (limitStatus, error) {
	counts, err := l.gate.InspectAddress(ctx, a)
	if err != nil {
		return limitStatus{}, err
	}
	s := limitStatus{Subject: counts.AddrNet.String(), Exempt: counts.Exempt, Sessions: counts.Sessions, Delay: counts.Delay}
	if counts.Ban != nil {
		line := newBanEntry(*counts.Ban)
		s.Ban = &line
	}
	for _, t := range counts.Tiers {
		s.Failures = append(s.Failures, failureCount{t.Net.String(), "minute", t.Minute, t.PerMinute},
			failureCount{t.Net.String(), "day", t.Day, t.PerDay})
	}
	return s, nil
}
