package gateway

import (
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/limit"
	"imapgate/internal/parking"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
	"imapgate/tlsconf"
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
// nil. Without Redis it returns nil. A timeout of 0 is that of logins.
func dialRedis(r *routing.RedisSettings, tlsConfig func() *tls.Config, timeout time.Duration) (redis.UniversalClient, error) {
	if r == nil {
		return nil, nil
	}
	client, err := routing.Dial(routing.RedisConfig{RedisSettings: *r, TLSConfig: tlsConfig, Timeout: timeout})
	return client, config.WithKey("redis", err)
}

// upstreamConfig returns the configuration of one backend.
func (g *Gateway) upstreamConfig(b config.Backend, instance string) upstream.Config {
	out := upstream.Config{Name: b.Name, Settings: b.Settings, LoginSettings: g.cfg.Limits.LoginSettings,
		TLSConfig: g.files.clientTLS(backendKey(b.Name)), SessionPrefix: instance, Sockets: g.descriptors, Places: g.fleet}
	if b.TLS != event.NoTLS {
		out.WrapConn = func(tcp *net.TCPConn) net.Conn { return parking.NewBufferedConn(tcp) }
	}
	return out
}

// storeTimeout bounds each exchange of a command with Redis. No client waits for it, so a busy
// Redis is no error yet.
const storeTimeout = 5 * time.Second

// Store has the routes and the limits of a configuration, for commands without a gateway.
type Store struct {
	Routes *routing.Router
	Limits *LimitAdmin
	redis  redis.UniversalClient // nil without Redis
}

// OpenStore opens the store of a configuration. It connects on first use.
func OpenStore(cfg *config.Config) (*Store, error) {
	rdb, err := dialRedisOnce(cfg)
	if err != nil {
		return nil, err
	}
	routes, routesErr := routing.New(routingConfig(cfg), rdb, routing.Metrics{}, zap.NewNop())
	limitCfg := limitConfig(cfg)
	limitCfg.Wait = storeTimeout
	limits, limitsErr := limit.New(limitCfg, rdb, limit.Hooks{}, zap.NewNop())
	s := &Store{routes, newLimitAdmin(cfg, limits), rdb}
	if err := errors.Join(config.WithKey("routing", routesErr), config.WithKey("limits", limitsErr)); err != nil {
		s.Close()
		return nil, cfg.Locate(err)
	}
	return s, nil
}

// Close closes the connections to Redis.
func (s *Store) Close() {
	if s.redis != nil {
		_ = s.redis.Close() // nothing is waiting to be written
	}
}

// dialRedisOnce is dialRedis for a single command, which does not watch files. Its
// errors have their positions in the configuration.
func dialRedisOnce(cfg *config.Config) (redis.UniversalClient, error) {
	var tlsConfig func() *tls.Config
	for _, c := range clientBlocks(cfg) {
		if c.key != redisKey {
			continue
		}
		client, err := tlsconf.NewClient(c.cfg, zap.NewNop())
		if err != nil {
			return nil, cfg.Locate(c.fileKeys().addKeys(redisKey, err))
		}
		tlsConfig = client.Config
	}
	rdb, err := dialRedis(cfg.Redis, tlsConfig, storeTimeout)
	return rdb, cfg.Locate(err)
}
