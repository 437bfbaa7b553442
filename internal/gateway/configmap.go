package gateway

import (
	"crypto/tls"
	"maps"
	"net"
	"slices"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/parking"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// The types of internal/identity that this package uses.
type (
	user   = identity.User
	secret = identity.Secret
)

// The functions below convert the configuration to the settings of each package.

func needsTLS(cfg *config.Config) bool {
	return slices.ContainsFunc(cfg.Listeners, func(l config.Listener) bool { return l.TLS != event.NoTLS })
}

func (g *Gateway) proxyConfig(instance string) proxy.Config {
	cfg := g.cfg
	out := proxy.Config{
		LimitSettings: cfg.Limits.LimitSettings, Instance: instance, FleetSecret: cfg.Auth.SCRAMSecret, TokenRefusal: g.authSources.tokenRefusal(),
		SessionGrace: cfg.Auth.OAuth.SessionGrace, RouteByAuth: cfg.Routing.Source == routing.SourceHTTP, ResolveTTL: cfg.Routing.Cache.TTL,
		Modes: make(map[string]proxy.BackendSettings, len(cfg.Backends)),
	}
	for name, b := range cfg.Backends {
		out.Modes[name] = b.BackendSettings
	}
	for _, l := range cfg.Listeners {
		out.Listeners = append(out.Listeners, l.ListenerSettings)
	}
	return out
}

func routingConfig(cfg *config.Config) routing.Config {
	out := routing.Config{Settings: cfg.Routing, Backends: slices.Sorted(maps.Keys(cfg.Backends)), Names: cfg.Auth.NameRules}
	if cfg.Redis != nil {
		out.Prefix = cfg.Redis.Prefix
	}
	return out
}

// dialRedis creates the client of the configured Redis, with TLS unless tlsConfig is
// nil. Without Redis it returns nil.
func dialRedis(r *routing.RedisSettings, tlsConfig func() *tls.Config) (redis.UniversalClient, error) {
	if r == nil {
		return nil, nil
	}
	client, err := routing.Dial(routing.RedisConfig{RedisSettings: *r, TLSConfig: tlsConfig})
	return client, config.WithKey("redis", err)
}

// upstreamConfig returns the configuration of one backend.
func (g *Gateway) upstreamConfig(b config.Backend, instance string) upstream.Config {
	out := upstream.Config{Name: b.Name, Settings: b.Settings, LoginSettings: g.cfg.Limits.LoginSettings,
		TLSConfig: g.files.clientTLS(backendKey(b.Name)), SessionPrefix: instance, Sockets: g.descriptors}
	if b.TLS != event.NoTLS {
		out.WrapConn = func(tcp *net.TCPConn) net.Conn { return parking.NewBufferedConn(tcp) }
	}
	return out
}
