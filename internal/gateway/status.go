package gateway

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"imapgate/internal/admin/api"
	"imapgate/internal/event"
	"imapgate/proxy/relay"
)

// expiryWarning is how long before its end a certificate is an alert.
const expiryWarning = 21 * 24 * time.Hour

// ShowStatus returns the state of this gateway.
func (g *Gateway) ShowStatus(context.Context, *api.None) (api.Status, error) {
	s := api.Status{
		Gateway: api.GatewayStatus{
			ID: g.instance, Name: g.name(), Version: g.version, State: g.state(), Started: api.Time{Time: g.startedAt},
			Uptime: time.Since(g.startedAt).Seconds(), PID: os.Getpid(),
		},
		Listeners: g.describeListeners(), Sessions: g.countSessions(g.proxy.Registry().Sessions()), Backends: g.describeBackends(),
		Redis: g.describeRedis(), Audit: []api.AuditSink{}, Config: g.describeConfig(), Certificates: []api.Certificate{},
	}
	for _, sink := range g.audit.Sinks() {
		state := "ok"
		if sink.Failing {
			state = "failing"
		}
		s.Audit = append(s.Audit, api.AuditSink{Name: sink.Name, State: state, Lost: sink.LostRecords})
	}
	g.reportExpiry(func(file string, notAfter time.Time) {
		s.Certificates = append(s.Certificates, api.Certificate{File: file, NotAfter: api.Time{Time: notAfter}})
	})
	slices.SortFunc(s.Certificates, func(a, b api.Certificate) int { return strings.Compare(a.File, b.File) })
	s.Alerts = g.alerts(&s)
	return s, nil
}

// state returns what this gateway is doing.
func (g *Gateway) state() string {
	switch {
	case g.proxy.IsDraining():
		return "draining"
	case !g.isAccepting.Load():
		return "starting"
	}
	return "serving"
}

func (g *Gateway) describeListeners() []api.Listener {
	list, addrs := []api.Listener{}, g.Addrs()
	for _, l := range g.cfg.Listeners {
		address := l.Address
		if a := addrs[l.Name]; a != nil {
			address = a.String()
		}
		list = append(list, api.Listener{Name: l.Name, Address: address, TLS: string(l.TLS)})
	}
	return list
}

func (g *Gateway) countSessions(sessions []*relay.Session) api.SessionCounts {
	c := api.SessionCounts{
		Total: len(sessions), ByMode: make(map[string]int), ByState: make(map[string]int), LoginsPerSecond: g.proxy.Registry().LoginsPerSecond(),
	}
	for _, s := range sessions {
		c.ByMode[string(s.Info().Mode)]++
		c.ByState[string(s.Status().Activity)]++
	}
	return c
}

func (g *Gateway) describeBackends() []api.BackendStatus {
	list := []api.BackendStatus{}
	for _, name := range slices.Sorted(maps.Keys(g.backends)) {
		b := api.BackendStatus{Name: name, Sessions: len(g.proxy.Registry().Select(relay.Query{Backend: name})), Addresses: make(map[string]int)}
		for _, a := range g.backends[name].Addresses() {
			b.Addresses[string(a.State)]++
		}
		list = append(list, b)
	}
	return list
}

func (g *Gateway) describeRedis() api.RedisStatus {
	if g.redis == nil {
		return api.RedisStatus{}
	}
	up, why := g.limits.RedisHealth()
	return api.RedisStatus{Configured: true, Connected: up, Error: why}
}

// configState is which configuration is in force.
type configState struct {
	loadedAt   time.Time
	lastReload api.LastReload
}

func (g *Gateway) describeConfig() api.ConfigStatus {
	g.configMu.Lock()
	defer g.configMu.Unlock()
	return api.ConfigStatus{
		File: g.cfg.File(), Hash: g.cfg.Hash(), LoadedAt: api.Time{Time: g.config.loadedAt}, LastReload: g.config.lastReload,
	}
}

// alerts returns what an operator must see to, the most urgent first.
func (g *Gateway) alerts(s *api.Status) []api.Alert {
	list := []api.Alert{}
	add := func(isAlert bool, code, format string, args ...any) {
		if isAlert {
			list = append(list, api.Alert{Code: code, Text: fmt.Sprintf(format, args...)})
		}
	}
	add(g.audit.Ready() != nil, "audit_blocked", "The audit log cannot be written, so no one can log in: %v.", g.audit.Ready())
	for _, b := range s.Backends {
		up, total := b.Addresses[string(event.AddressUp)], 0
		for _, n := range b.Addresses {
			total += n
		}
		add(total > 0 && up == 0, "backend_down", "Backend %s has no address that is up.", b.Name)
		add(up > 0 && b.Addresses[string(event.AddressDown)] > 0, "address_down", "Backend %s: %d of %d addresses are down.", b.Name, b.Addresses[string(event.AddressDown)], total)
	}
	add(s.Redis.Configured && !s.Redis.Connected, "redis_down", "Redis does not answer: users without a cached route cannot log in, and limits are those of each gateway alone. %s", s.Redis.Error)
	for _, sink := range s.Audit {
		add(sink.State != "ok", "audit_failing", "Audit sink %s fails; %d records are lost.", sink.Name, sink.Lost)
	}
	for _, c := range s.Certificates {
		left := time.Until(c.NotAfter.Time)
		add(left <= 0, "certificate_expired", "The certificate %s has expired.", c.File)
		add(left > 0 && left < expiryWarning, "certificate_expiring", "The certificate %s ends in %d days.", c.File, int(left.Hours()/24))
	}
	add(s.Config.LastReload.Error != "", "config_rejected", "The configuration file was refused at the last reload, so a restart would fail or change settings: %s.", s.Config.LastReload.Error)
	add(s.Gateway.State == "draining", "draining", "This gateway drains: %d sessions are left.", s.Sessions.Total)
	return list
}

// ShowUser returns what the gateways know about a user.
func (g *Gateway) ShowUser(ctx context.Context, in *api.UserName) (api.User, error) {
	u, err := g.auth.Canonicalize(in.User)
	if err != nil {
		return api.User{}, fmt.Errorf("%w: invalid user name", api.ErrBadRequest)
	}
	x := g.routes.Explain(ctx, u)
	user := api.User{Name: u.String(), Route: api.RouteState{
		Backend: x.Backend, Login: x.Login, Mode: string(x.Mode), Source: string(x.Match), Key: x.Key, From: string(x.Origin),
		Age: x.Age.Seconds(), Error: x.Error, Steps: []api.RouteStep{},
	}}
	for _, step := range x.Steps {
		user.Route.Steps = append(user.Route.Steps, api.RouteStep{Key: step.Key, Content: step.Content, Used: step.Used})
	}
	answers, gateways, err := g.sessionsOperation().ask(ctx, g, in.Scope, sessionArgs{Query: api.SessionQuery{User: u.String()}, Limit: maxPage})
	if err != nil {
		return user, err
	}
	user.Gateways, user.Sessions = gateways, []api.Session{}
	for _, a := range answers {
		user.Sessions = append(user.Sessions, a.answer.Sessions...)
	}
	user.Sessions = user.Sessions[:min(len(user.Sessions), maxPage)]
	user.Limits, err = g.limitsOf(ctx, u.String())
	user.Limits.BlockedUntil = api.Time{Time: g.proxy.BlockedUntil(u)}
	for _, k := range user.Limits.KnownNetworks {
		if k.Last.After(user.LastLogin.Time) {
			user.LastLogin = k.Last
		}
	}
	return user, err
}
