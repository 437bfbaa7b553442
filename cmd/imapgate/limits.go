package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/admin"
	"imapgate/internal/audit"
	"imapgate/internal/config"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/proxy"
)

// limitConfig is the part of the configuration that says who may come in.
func limitConfig(cfg *config.Config) limit.Config {
	l := cfg.Limits
	f := l.Failures
	defaults := listenerLimits(l, config.Listener{})
	out := limit.Config{
		Names:    cfg.Auth.NameRules,
		Settings: defaults.Settings, Failures: defaults.Failures, Quotas: defaults.Quotas,
		Listeners: make(map[string]limit.Listener, len(cfg.Listeners)),
		Preauth:   proxy.PreauthLimit(cfg.Limits.MaxConnections),
		Bans:      limit.Bans{Window: f.BanWithin, Duration: f.BanDuration, MaxDuration: f.MaxBanDuration}, KnownFor: f.KnownFor,
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

// listenerLimits are the limits of a listener.
func listenerLimits(l config.Limits, listener config.Listener) limit.Listener {
	c, f, b := l.Connections.ForListener(listener), l.Failures.ForListener(listener), l.UserQuota.ForListener(listener)
	// The answer must come before the time for a login is over.
	maxDelay := min(f.MaxDelay, l.PreauthTimeout/4)
	out := limit.Listener{
		Settings: limit.Settings{
			PerUserAddress: c.PerUserAddress, PerUser: c.PerUser, PerAddress: c.PerAddress, PreauthPerAddress: c.PreauthPerAddress,
			PreauthNetworkPercent: c.PreauthNetworkPercent, Total: c.Total, NewPerMinute: c.NewPerMinute, NewBurst: c.NewBurst, Exempt: l.ExemptNetworksFor(listener),
		},
		Failures: limit.Failures{
			PerMinute: f.PerMinute, PerDay: f.PerDay, Delay: min(f.Delay, maxDelay), MaxDelay: maxDelay,
			PerUserHour: f.PerUserHour, PerUserDay: f.PerUserDay, PerUserNetworkHour: f.PerUserNetworkHour, BanAfter: f.BanAfter,
		},
		Quotas: limit.Quotas{
			Commands: b.CommandsPerSecond, In: int64(b.BytesInPerSecond), Out: int64(b.BytesOutPerSecond), Upload: int64(b.AppendBytesPerDay),
		},
	}
	if f.PerUserNetworkHour == 0 {
		out.Failures.PerUserNetworkHour = math.MaxInt // there, 0 is the default
	}
	return out
}

// openLimits comes behind openRoutes, which makes the Redis client, and openAudit.
func (g *gateway) openLimits() (err error) {
	hooks := limit.Hooks{OnBan: g.recordBan, OnBanRequest: g.recordOperatorBan, OnSpray: g.recordSpray, OnRedis: g.setClusterConnected}
	if g.limits, err = limit.New(limitConfig(g.cfg), g.redis, hooks, g.log); err != nil {
		return config.WithKey("limits", err)
	}
	g.setClusterConnected(false) // until Redis has taken something
	g.metrics.ObserveBans(g.limits.BanCount)
	return nil
}

// recordBan puts a ban on record.
func (g *gateway) recordBan(b limit.Ban) {
	g.log.Info("banned", zap.Stringer("network", b.Net), zap.String("why", string(b.Reason)), zap.Duration("for", b.Remaining))
	g.logLostRecord(g.audit.BanAdded(&audit.Ban{
		Subject: b.Net.String(), Reason: audit.Cause(b.Reason), Until: time.Now().Add(b.Remaining), Note: b.Note,
	}))
}

// recordOperatorBan puts on record what an operator has changed, from wherever: every gateway
// has it in its own log.
func (g *gateway) recordOperatorBan(o limit.BanRequest) {
	ban := audit.Ban{Subject: o.Net.String(), Reason: audit.CauseOperator, Operator: "operator", Note: o.Note}
	if o.Duration == 0 {
		g.log.Info("ban lifted by an operator", zap.Stringer("network", o.Net))
		g.logLostRecord(g.audit.BanRemoved(&ban))
		return
	}
	ban.Until = time.Now().Add(o.Duration)
	g.log.Info("banned by an operator", zap.Stringer("network", o.Net), zap.Duration("for", o.Duration))
	g.logLostRecord(g.audit.BanAdded(&ban))
}

// recordSpray puts the suspicion on record that few passwords are tried for many users.
func (g *gateway) recordSpray(s limit.Spray) {
	if !s.Suspected {
		g.log.Info("password spraying is suspected no longer")
		return
	}
	g.metrics.Limits.SprayDetections.Inc()
	g.log.Warn("password spraying is suspected: logins from networks where nobody is known are delayed", zap.Int("users", s.Users))
	subject := ""
	if s.Net.IsValid() {
		subject = s.Net.String()
	}
	g.logLostRecord(g.audit.SpraySuspected(&audit.Spray{Users: s.Users, Subject: subject, Window: time.Minute}))
}

// setClusterConnected shows whether limits are counted together with other gateways.
func (g *gateway) setClusterConnected(connected bool) {
	g.metrics.Limits.ClusterConnected.Set(0)
	if connected {
		g.metrics.Limits.ClusterConnected.Set(1)
	}
}

// logLostRecord says that a record was lost which nobody waits for.
func (g *gateway) logLostRecord(err error) {
	if err != nil {
		g.log.Warn("this is not in the audit log", zap.Error(err))
	}
}

// newAdminLimits is what the admin address shows and changes of limits.
func (g *gateway) newAdminLimits() admin.Limits {
	a := newLocalAdmin(g.cfg, g.limits)
	return admin.Limits{
		ShowLimits: func(ctx context.Context, subject string) (any, error) { return a.showLimits(ctx, subject) },
		ResetLimits: func(ctx context.Context, subject string) (any, error) {
			done, err := a.resetLimits(ctx, subject)
			g.recordAdminAction(audit.ActLimitsReset, subject, err)
			return done, err
		},
		ListBans: func(ctx context.Context) (any, error) { return a.listBans(ctx) },
		AddBan: func(ctx context.Context, o admin.BanRequest) (any, error) {
			done, err := a.addBan(ctx, o)
			g.recordAdminAction(audit.ActBan, o.Subject, err)
			return done, err
		},
		RemoveBans: func(ctx context.Context, subject string) (any, error) {
			done, err := a.removeBans(ctx, subject)
			g.recordAdminAction(audit.ActUnban, subject, err)
			return done, err
		},
	}
}

// recordAdminAction puts on record what an operator did through the admin address.
func (g *gateway) recordAdminAction(action audit.Action, subject string, err error) {
	g.logLostRecord(g.audit.OperatorAction(&audit.OperatorAction{Action: action, Operator: "admin", Subject: subject, Err: err}))
}

// localAdmin answers an operator's questions about limits, and changes bans: in a running
// gateway, or for a command that speaks to Redis.
type localAdmin struct {
	// Set once.
	gate      *limit.Limiter
	nameRules identity.Names
	failures  config.Failures
}

func newLocalAdmin(cfg *config.Config, gate *limit.Limiter) *localAdmin {
	return &localAdmin{gate: gate, nameRules: cfg.Auth.NameRules, failures: cfg.Limits.Failures}
}

// banEntry is a ban as it is shown.
type banEntry struct {
	Network string    `json:"network"`
	Reason  string    `json:"why"`
	Until   time.Time `json:"until"`
	Count   int       `json:"count"` // which ban of this network it is, from 1
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
	return newBanEntry(limit.Ban{Net: net, Reason: limit.ByOperator, Remaining: o.Duration, Count: 1, Note: o.Note}), nil
}

// removedBans is what an order to end a ban has ended.
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

// limitStatus is what is counted of a user or an address.
type limitStatus struct {
	Subject           string         `json:"subject"`
	Exempt            bool           `json:"exempt,omitempty"`
	Sessions          int            `json:"sessions"`
	Delay             time.Duration  `json:"delay_ns"` // of the next login; of a user: from where it is not known
	Ban               *banEntry      `json:"ban,omitempty"`
	Failures          []failureCount `json:"failures"`
	KnownNetworksOnly bool           `json:"known_networks_only,omitempty"` // too many failures of the user
	KnownNetworks     []knownNetwork `json:"known_networks,omitempty"`
	Uploads           *uploadCount   `json:"uploads,omitempty"` // of a user, where there is a bound
}

// uploadCount are bytes of messages, of a day in UTC.
type uploadCount struct {
	Today int64 `json:"today"`
	Limit int64 `json:"most"` // 0: any number
}

// failureCount is how many logins have failed in a while, and how many may.
type failureCount struct {
	Subject string `json:"of"`
	Window  string `json:"in"`
	Count   int    `json:"count"`
	Limit   int    `json:"most,omitempty"` // 0: any number
}

// knownNetwork is from where a user has logged in of late.
type knownNetwork struct {
	Network  string    `json:"network"`
	Last     time.Time `json:"last"`
	Failures int       `json:"failures_in_an_hour"`
}

// showLimits takes an address for one, and everything else for a user.
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
		return u, fmt.Errorf("%w: this is neither an address nor a name that an account can have", admin.ErrBadRequest)
	}
	return u, nil
}

// limitsReset answers a reset: whose failed logins were forgotten.
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
