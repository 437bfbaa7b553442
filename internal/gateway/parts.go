package gateway

import (
	"crypto/tls"
	"fmt"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"imapgate/internal/config"
	"imapgate/internal/limit"
	"imapgate/routing"
	"imapgate/tlsconf"
)

// Store has the routes of a configuration, for a command without a gateway.
type Store struct {
	*routing.Router

	redis redis.UniversalClient // nil without Redis
}

// OpenStore opens the routes of a configuration.
func OpenStore(cfg *config.Config) (*Store, error) {
	rdb, err := dialRedisOnce(cfg)
	if err != nil {
		return nil, err
	}
	router, err := routing.New(routingConfig(cfg), rdb, routing.Metrics{}, zap.NewNop())
	if err != nil {
		closeRedis(rdb)
		return nil, cfg.Locate(config.WithKey("routing", err))
	}
	return &Store{router, rdb}, nil
}

// Close closes the connections to Redis.
func (s *Store) Close() { closeRedis(s.redis) }

// OpenLimits opens the limits that the gateways of a configuration share in Redis, for a
// command without a gateway.
func OpenLimits(cfg *config.Config) (*LimitAdmin, error) {
	rdb, err := dialRedisOnce(cfg)
	if err != nil {
		return nil, err
	}
	limits, err := limit.New(limitConfig(cfg), rdb, limit.Hooks{}, zap.NewNop())
	if err != nil {
		closeRedis(rdb)
		return nil, fmt.Errorf("limits: %w", err)
	}
	admin := newLimitAdmin(cfg, limits)
	admin.redis = rdb
	return admin, nil
}

// Close closes the connections to Redis that OpenLimits opened.
func (l *LimitAdmin) Close() { closeRedis(l.redis) }

func closeRedis(rdb redis.UniversalClient) {
	if rdb != nil {
		_ = rdb.Close() // nothing is waiting to be written
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
