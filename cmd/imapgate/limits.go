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
	usual := limitsOn(l, config.Listener{})
	made := limit.Config{
		Names:    cfg.Auth.Spelling,
		Settings: usual.Settings, Failures: usual.Failures, Budgets: usual.Budgets,
		Listeners: make(map[string]limit.Listener, len(cfg.Listeners)),
		Preauth:   proxy.PreauthRoom(cfg.Limits.MaxConnections),
		Bans:      limit.Bans{Within: f.BanWithin, First: f.Ban, Longest: f.MaxBan}, KnownFor: f.KnownFor,
	}
	if cfg.Redis != nil {
		made.Prefix = cfg.Redis.Prefix
	}
	for _, on := range cfg.Listeners {
		if on.Limits != nil {
			made.Listeners[on.Name] = limitsOn(l, on)
		}
	}
	return made
}

// limitsOn are the limits of a listener.
func limitsOn(l config.Limits, on config.Listener) limit.Listener {
	c, f, b := l.Connections.On(on), l.Failures.On(on), l.Budget.On(on)
	// The answer must come before the time for a login is over.
	longest := min(f.MaxDelay, l.PreauthTimeout/4)
	made := limit.Listener{
		Settings: limit.Settings{
			PerUserAddress: c.PerUserAddress, PerUser: c.PerUser, PerAddress: c.PerAddress, Strangers: c.PreauthPerAddress,
			NetworkShare: c.PreauthNetwork, Total: c.Total, NewPerMinute: c.NewPerMinute, NewBurst: c.NewBurst, Exempt: l.ExemptOn(on),
		},
		Failures: limit.Failures{
			PerMinute: f.PerMinute, PerDay: f.PerDay, Delay: min(f.Delay, longest), MaxDelay: longest,
			PerUserHour: f.PerUserHour, PerUserTotal: f.PerUserTotal, PerPairHour: f.PerUserNet, BanAfter: f.BanAfter,
		},
		Budgets: limit.Budgets{
			Commands: b.CommandsPerSecond, In: int64(b.BytesInPerSecond), Out: int64(b.BytesOutPerSecond), Upload: int64(b.AppendBytesPerDay),
		},
	}
	if f.PerUserNet == 0 {
		made.Failures.PerPairHour = math.MaxInt // there, 0 is the default
	}
	return made
}

// openLimits comes behind openRoutes, which makes the Redis client, and openAudit.
func (g *gateway) openLimits() (err error) {
	hooks := limit.Hooks{OnBan: g.banned, OnOrder: g.ordered, OnSpray: g.sprayed, OnRedis: g.sharing}
	if g.limits, err = limit.New(limitConfig(g.cfg), g.redis, hooks, g.log); err != nil {
		return config.At("limits", err)
	}
	g.sharing(false) // until Redis has taken something
	g.metrics.ObserveBans(g.limits.Banned)
	return nil
}

// banned puts a ban on record.
func (g *gateway) banned(b limit.Ban) {
	g.log.Info("banned", zap.Stringer("network", b.Net), zap.String("why", string(b.Why)), zap.Duration("for", b.For))
	g.unrecorded(g.audit.BanAdded(&audit.Ban{
		Subject: b.Net.String(), Why: audit.Cause(b.Why), Until: time.Now().Add(b.For), Note: b.Note,
	}))
}

// ordered puts on record what an operator has changed, from wherever: every gateway
// has it in its own log.
func (g *gateway) ordered(o limit.Order) {
	made := audit.Ban{Subject: o.Net.String(), Why: audit.CauseOperator, By: "operator", Note: o.Note}
	if o.For == 0 {
		g.log.Info("ban lifted by an operator", zap.Stringer("network", o.Net))
		g.unrecorded(g.audit.BanRemoved(&made))
		return
	}
	made.Until = time.Now().Add(o.For)
	g.log.Info("banned by an operator", zap.Stringer("network", o.Net), zap.Duration("for", o.For))
	g.unrecorded(g.audit.BanAdded(&made))
}

// sprayed puts the suspicion on record that few passwords are tried for many users.
func (g *gateway) sprayed(s limit.Spray) {
	if !s.Suspected {
		g.log.Info("password spraying is suspected no longer")
		return
	}
	g.metrics.Limits.Sprays.Inc()
	g.log.Warn("password spraying is suspected: logins from networks where nobody is known are delayed", zap.Int("users", s.Users))
	subject := ""
	if s.Net.IsValid() {
		subject = s.Net.String()
	}
	g.unrecorded(g.audit.SpraySuspected(&audit.Spray{Users: s.Users, Subject: subject, Within: time.Minute}))
}

// sharing shows whether limits are counted together with other gateways.
func (g *gateway) sharing(up bool) {
	g.metrics.Limits.Shared.Set(0)
	if up {
		g.metrics.Limits.Shared.Set(1)
	}
}

// unrecorded says that a record was lost which nobody waits for.
func (g *gateway) unrecorded(err error) {
	if err != nil {
		g.log.Warn("this is not in the audit log", zap.Error(err))
	}
}

// adminLimits is what the admin address shows and changes of limits.
func (g *gateway) adminLimits() admin.Limits {
	d := newDesk(g.cfg, g.limits)
	return admin.Limits{
		Show: func(ctx context.Context, who string) (any, error) { return d.show(ctx, who) },
		Forgive: func(ctx context.Context, who string) (any, error) {
			done, err := d.resetLimits(ctx, who)
			g.asked(audit.ActLimitsReset, who, err)
			return done, err
		},
		Bans: func(ctx context.Context) (any, error) { return d.bans(ctx) },
		Ban: func(ctx context.Context, o admin.Order) (any, error) {
			done, err := d.ban(ctx, o)
			g.asked(audit.ActBan, o.Who, err)
			return done, err
		},
		Unban: func(ctx context.Context, who string) (any, error) {
			done, err := d.unban(ctx, who)
			g.asked(audit.ActUnban, who, err)
			return done, err
		},
	}
}

// asked puts on record what an operator did through the admin address.
func (g *gateway) asked(what audit.Action, who string, err error) {
	g.unrecorded(g.audit.OperatorAction(&audit.Operator{Action: what, By: "admin", Subject: who, Err: err}))
}

// desk answers an operator's questions about limits, and changes bans: in a running
// gateway, or for a command that speaks to Redis.
type desk struct {
	// Set once.
	gate     *limit.Gate
	names    identity.Names
	failures config.Failures
}

func newDesk(cfg *config.Config, gate *limit.Gate) *desk {
	return &desk{gate: gate, names: cfg.Auth.Spelling, failures: cfg.Limits.Failures}
}

// banLine is a ban as it is shown.
type banLine struct {
	Network string    `json:"network"`
	Why     string    `json:"why"`
	Until   time.Time `json:"until"`
	Count   int       `json:"count"` // which ban of this network it is, from 1
	Note    string    `json:"note,omitempty"`
}

func lineOf(b limit.Ban) banLine {
	return banLine{b.Net.String(), string(b.Why), time.Now().Add(b.For).UTC().Truncate(time.Second), b.Count, b.Note}
}

func (d *desk) bans(ctx context.Context) ([]banLine, error) {
	all, err := d.gate.Bans(ctx)
	lines := make([]banLine, 0, len(all))
	for _, b := range all {
		lines = append(lines, lineOf(b))
	}
	return lines, err
}

func (d *desk) ban(ctx context.Context, o admin.Order) (banLine, error) {
	net, err := limit.ParseNet(o.Who)
	if err != nil {
		return banLine{}, fmt.Errorf("%w: %w", admin.ErrOrder, err)
	}
	if err := d.gate.Ban(ctx, net, o.For, o.Why); errors.Is(err, limit.ErrTooWide) || errors.Is(err, limit.ErrLength) {
		return banLine{}, fmt.Errorf("%w: %w", admin.ErrOrder, err)
	} else if err != nil {
		return banLine{}, err
	}
	return lineOf(limit.Ban{Net: net, Why: limit.ByOperator, For: o.For, Count: 1, Note: o.Why}), nil
}

// lifted is what an order to end a ban has ended.
type lifted struct {
	Networks []string `json:"networks"`
}

func (d *desk) unban(ctx context.Context, who string) (lifted, error) {
	net, err := limit.ParseNet(who)
	if err != nil {
		return lifted{}, fmt.Errorf("%w: %w", admin.ErrOrder, err)
	}
	nets, err := d.gate.Unban(ctx, net)
	l := lifted{Networks: make([]string, 0, len(nets))}
	for _, n := range nets {
		l.Networks = append(l.Networks, n.String())
	}
	return l, err
}

// standing is what is counted of a user or an address.
type standing struct {
	Subject  string        `json:"subject"`
	Exempt   bool          `json:"exempt,omitempty"`
	Sessions int           `json:"sessions"`
	Delay    time.Duration `json:"delay_ns"` // of the next login; of a user: from where it is not known
	Banned   *banLine      `json:"ban,omitempty"`
	Failed   []failed      `json:"failures"`
	Closed   bool          `json:"known_networks_only,omitempty"` // too many failures of the user
	Known    []knownNet    `json:"known_networks,omitempty"`
	Uploads  *uploads      `json:"uploads,omitempty"` // of a user, where there is a bound
}

// uploads are bytes of messages, of a day in UTC.
type uploads struct {
	Today int64 `json:"today"`
	Most  int64 `json:"most"` // 0: any number
}

// failed is how many logins have failed in a while, and how many may.
type failed struct {
	Of    string `json:"of"`
	In    string `json:"in"`
	Count int    `json:"count"`
	Most  int    `json:"most,omitempty"` // 0: any number
}

// knownNet is from where a user has logged in of late.
type knownNet struct {
	Network string    `json:"network"`
	Last    time.Time `json:"last"`
	Failed  int       `json:"failures_in_an_hour"`
}

// show takes an address for one, and everything else for a user.
func (d *desk) show(ctx context.Context, who string) (standing, error) {
	if a, err := netip.ParseAddr(who); err == nil {
		return d.showAddress(ctx, a)
	}
	u, err := d.user(who)
	if err != nil {
		return standing{}, err
	}
	about, err := d.gate.ShowUser(ctx, u)
	if err != nil {
		return standing{}, err
	}
	s := standing{Subject: u.String(), Sessions: about.Sessions, Delay: about.Delay, Closed: about.KnownOnly}
	s.Failed = []failed{
		{u.String(), "hour", about.Hour, d.failures.PerUserHour}, {u.String(), "day", about.Day, d.failures.PerUserTotal},
	}
	if about.Counted {
		s.Uploads = &uploads{about.Uploaded, about.Upload}
	}
	for _, k := range about.Known {
		s.Known = append(s.Known, knownNet{k.Net.String(), time.Now().Add(-k.Ago).UTC().Truncate(time.Second), k.Hour})
	}
	return s, nil
}

func (d *desk) user(who string) (user, error) {
	u, err := d.names.Canon(who)
	if err != nil {
		return u, fmt.Errorf("%w: this is neither an address nor a name that an account can have", admin.ErrOrder)
	}
	return u, nil
}

// limitsReset answers a reset: whose failed logins were forgotten.
type limitsReset struct {
	User string `json:"user"`
}

func (d *desk) resetLimits(ctx context.Context, who string) (limitsReset, error) {
	u, err := d.user(who)
	if err != nil {
		return limitsReset{}, err
	}
	return limitsReset{u.String()}, d.gate.Forgive(ctx, u)
}

func (d *desk) showAddress(ctx context.Context, a netip.Addr) (standing, error) {
	about, err := d.gate.ShowAddress(ctx, a)
	if err != nil {
		return standing{}, err
	}
	s := standing{Subject: about.Home.String(), Exempt: about.Exempt, Sessions: about.Sessions, Delay: about.Delay}
	if about.Ban != nil {
		line := lineOf(*about.Ban)
		s.Banned = &line
	}
	for _, t := range about.Tiers {
		s.Failed = append(s.Failed, failed{t.Net.String(), "minute", t.Minute, t.PerMinute},
			failed{t.Net.String(), "day", t.Day, t.PerDay})
	}
	return s, nil
}
