package main

import (
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/identity"
	"imapgate/internal/quiet"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// The two words of internal/identity that the wiring mentions.
type (
	user   = identity.User
	secret = identity.Secret
)

// Each function here gives one room its part of the configuration.

func needsTLS(cfg *config.Config) bool {
	return slices.ContainsFunc(cfg.Listeners, func(l config.Listener) bool { return l.TLS != string(proxy.NoTLS) })
}

func proxyConfig(cfg *config.Config, instance string) proxy.Config {
	l := cfg.Limits
	p := proxy.Config{
		MaxConnections: l.MaxConnections,
		Preauth:        l.PreauthTimeout,
		Handshake:      l.TLSHandshakeTimeout,
		Handshakes:     l.TLSHandshakes,
		Idle:           l.IdleTimeout,
		Write:          l.WriteTimeout,
		Drain:          l.Drain,
		AuthAttempts:   l.AuthAttempts,
		BadCommands:    l.BadCommands,
		MaxLine:        l.MaxLineLength,
		Instance:       instance,
		Secret:         cfg.Auth.SCRAMSecret,
		Placed:         cfg.Routing.Source == routing.SourceHTTP,
		PlaceTTL:       cfg.Routing.Cache.TTL,
		Modes:          make(map[string]proxy.Mode, len(cfg.Backends)),
	}
	for name, b := range cfg.Backends {
		p.Modes[name] = proxy.Mode{Name: b.Mode, Mux: b.Mux.Settings()}
	}
	for _, l := range cfg.Listeners {
		made := proxy.Listener{Name: l.Name, Address: l.Address, TLS: proxy.TLSMode(l.TLS), Trusted: l.TrustedNetworks}
		if l.ProxyProtocol != nil {
			made.ProxyTrusted = l.ProxyProtocol.Trusted
		}
		p.Listeners = append(p.Listeners, made)
	}
	return p
}

func routingConfig(cfg *config.Config) routing.Config {
	r := cfg.Routing
	made := routing.Config{
		Source:   r.Source,
		Static:   routing.Static{Users: r.Static.Users, Domains: r.Static.Domains, Default: r.Static.Default},
		Backends: slices.Sorted(maps.Keys(cfg.Backends)),
		Names:    cfg.Auth.Spelling,
		TTL:      r.Cache.TTL,
		Stale:    r.Cache.Stale,
		Negative: r.Cache.Negative,
		Snapshot: r.Snapshot,
	}
	if cfg.Redis != nil {
		made.Prefix = cfg.Redis.Prefix
	}
	return made
}

// dialRedis makes the client of the configured Redis, or none, with TLS where secured
// is not nil.
func dialRedis(r *config.Redis, secured func() *tls.Config) (redis.UniversalClient, error) {
	if r == nil {
		return nil, nil
	}
	made, err := routing.Dial(routing.RedisConfig{
		Addresses:        r.Addresses,
		Cluster:          r.Cluster,
		SentinelMaster:   r.SentinelMaster,
		SentinelUsername: r.SentinelUsername,
		SentinelPassword: r.SentinelPassword,
		Database:         r.Database,
		Username:         r.Username,
		Password:         r.Password,
		TLS:              secured,
		Prefix:           r.Prefix,
	})
	return made, config.At("redis", err)
}

// dialRedisOnce is dialRedis for one command, which does not follow files. Its errors
// have their places.
func dialRedisOnce(cfg *config.Config) (redis.UniversalClient, error) {
	var secured func() *tls.Config
	for _, c := range clientsOf(cfg) {
		if c.key != redisKey {
			continue
		}
		client, err := tlsconf.NewClient(c.cfg, zap.NewNop())
		if err != nil {
			return nil, cfg.Place(c.keys().place(redisKey, err))
		}
		secured = client.Config
	}
	rdb, err := dialRedis(cfg.Redis, secured)
	return rdb, cfg.Place(err)
}

// upstreamConfig is one backend. Instance is left open; secured is for one with TLS.
func upstreamConfig(name string, b config.Backend, l config.Limits, secured func() *tls.Config) upstream.Config {
	made := upstream.Config{
		Name:    name,
		Address: b.Address,
		TLSMode: upstream.TLSMode(b.TLS),
		TLS:     secured,
		Login:   b.Login,
		Master: upstream.Master{
			User: b.Master.User, Password: b.Master.Password,
			Style: b.Master.Style, Separator: b.Master.Separator,
		},
		Forward:        b.Forward,
		ConnectTimeout: l.UpstreamConnectTimeout,
		LoginTimeout:   l.UpstreamLoginTimeout,
		MaxLogins:      l.MaxUpstreamLogins,
		LoginRate:      l.MaxUpstreamRate,
		TTL:            l.ProxyTTL,
	}
	if made.TLSMode != upstream.NoTLS {
		made.Socket = func(tcp *net.TCPConn) net.Conn { return quiet.NewSocket(tcp) }
	}
	return made
}

// reportExpiry tells the metrics when each certificate ends that is served or shown.
func (g *gateway) reportExpiry(report func(file string, notAfter time.Time)) {
	seen := make(map[string]bool) // one certificate may be shown to several
	for _, c := range g.files.certificates() {
		if !seen[c.File] {
			seen[c.File] = true
			report(c.File, c.NotAfter)
		}
	}
}
