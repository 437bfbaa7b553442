package routing

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"imapgate/tlsconf"
)

// Timeouts of one exchange with Redis. A route is a few bytes from a nearby server and a
// client is waiting, so a slower exchange counts as a failure.
const (
	dialTimeout = time.Second
	ioTimeout   = 250 * time.Millisecond
)

// RedisConfig is the configuration of a client of Redis.
type RedisConfig struct {
	RedisSettings
	TLSConfig func() *tls.Config // for new connections; nil without TLS
	Timeout   time.Duration      // of one exchange; 0: 250 ms
}

// credentials returns what new connections log in with. Without a password they do not log in.
func (c RedisConfig) credentials() (username, password string) {
	return c.Username, c.Password.Reveal()
}

// dialer returns a dial function with the current TLS configuration; nil without TLS, for the
// client's own. It verifies the server against the configured name, or the name dialed.
func (c RedisConfig) dialer() func(context.Context, string, string) (net.Conn, error) {
	if c.TLSConfig == nil {
		return nil
	}
	d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 5 * time.Minute}
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		return tlsconf.Dial(ctx, d, address, c.TLSConfig)
	}
}

// Dial returns a client, which connects on first use. Its errors name the remedy for
// operators.
//
// The ACL user needs hello, auth, ping, echo, hgetall and "client|tracking", with a database
// select, in a cluster also "cluster|slots" and command; for operators' writes eval, evalsha,
// hset, hdel and del. The ACL user of the sentinels needs hello, auth,
// "sentinel|get-master-addr-by-name", "sentinel|sentinels" and subscribe.
func Dial(c RedisConfig) (redis.UniversalClient, error) {
	if len(c.Addresses) == 0 {
		return nil, errors.New("redis: no address")
	}
	if c.Cluster && c.SentinelMaster != "" {
		return nil, errors.New("redis: cluster and sentinel_master exclude each other")
	}
	if len(c.Addresses) > 1 && !c.Cluster && c.SentinelMaster == "" {
		return nil, errors.New("redis: several addresses need cluster or sentinel_master")
	}
	if c.Cluster && c.Database != 0 {
		return nil, errors.New("redis: a cluster has database 0 only")
	}
	explainer := &errorExplainer{tls: c.TLSConfig != nil, credentials: c.credentials, sentinels: c.SentinelMaster != "", cluster: c.Cluster}
	client := newClient(c, explainer)
	client.AddHook(commandHook{explainer, strings.Join(c.Addresses, ", ")})
	return client, nil
}

func newClient(c RedisConfig, explainer *errorExplainer) redis.UniversalClient {
	options := options(c)
	if c.Cluster {
		nodes := options.Cluster()
		nodes.NewClient = func(node *redis.Options) *redis.Client {
			client := redis.NewClient(node)
			client.AddHook(connectHook{explainer})
			return client
		}
		return redis.NewClusterClient(nodes)
	}
	client := redis.NewUniversalClient(options)
	client.AddHook(connectHook{explainer})
	return client
}

func options(c RedisConfig) *redis.UniversalOptions {
	addresses := make([]string, len(c.Addresses)) // a copy: a cluster client appends to it
	for i, address := range c.Addresses {
		addresses[i] = strings.TrimPrefix(address, "unix://") // go-redis detects a path by its slash
	}
	var tlsConfig *tls.Config
	if c.TLSConfig != nil {
		tlsConfig = c.TLSConfig()
	}
	timeout := cmp.Or(c.Timeout, ioTimeout)
	return &redis.UniversalOptions{
		Addrs:            addresses,
		MasterName:       c.SentinelMaster,
		DB:               c.Database,
		SentinelUsername: c.SentinelUsername,
		SentinelPassword: c.SentinelPassword.Reveal(),
		Dialer:           c.dialer(),
		TLSConfig:        tlsConfig, // enables TLS in go-redis; Dialer makes the connections

		CredentialsProvider: c.credentials,

		// RESP2 has no push messages that could be confused with replies. Nothing is sent on
		// connect whose late reply could shift those of the next query (CVE-2025-29923 was
		// CLIENT SETINFO).
		Protocol:        2,
		DisableIdentity: true,

		DialTimeout:           dialTimeout,
		ReadTimeout:           timeout,
		WriteTimeout:          timeout,
		PoolTimeout:           timeout,
		ContextTimeoutEnabled: true,
		// One retry, because the server may have closed a pooled connection. The breaker and
		// the cache handle the rest.
		MaxRetries:      1,
		MinRetryBackoff: 5 * time.Millisecond,
		MaxRetryBackoff: 50 * time.Millisecond,
		DialerRetries:   1,

		ReadBufferSize:  4 << 10,
		WriteBufferSize: 4 << 10,
		PoolSize:        32,
		ConnMaxIdleTime: 5 * time.Minute,
	}
}
