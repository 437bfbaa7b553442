package gateway

import (
	"crypto/tls"
	"errors"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/limit"
	"imapgate/routing"
	"imapgate/tlsconf"
)

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
	limits, limitsErr := limit.New(limitConfig(cfg), rdb, limit.Hooks{}, zap.NewNop())
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
	rdb, err := dialRedis(cfg.Redis, tlsConfig)
	return rdb, cfg.Locate(err)
}
