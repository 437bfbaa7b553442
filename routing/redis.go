package routing

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"time"

	"imapgate/internal/identity"
	"imapgate/tlsconf"

	"github.com/redis/go-redis/v9"
)

// Time limits of one exchange with Redis. A route is a few bytes from a server
// nearby: what takes longer is trouble, and a client is waiting.
const (
	dialTime = time.Second
	ioTime   = 250 * time.Millisecond
)

// RedisConfig says how to reach Redis.
type RedisConfig struct {
	Addresses      []string // the server, the sentinels, or some nodes of the cluster
	Cluster        bool
	SentinelMaster string // set: Addresses are sentinels
	Username       string
	Password       identity.Secret
	TLS            func() *tls.Config // for connections that begin now; nil for none
	Prefix         string             // of keys; default "imapgate:"
}

// credentials are what a connection that begins now logs in with; without a password it
// does not.
func (c RedisConfig) credentials() (username, password string) {
	password = c.Password.Reveal()
	if password == "" {
		return "", ""
	}
	return c.Username, password
}

// dialer makes connections with TLS as it is configured now, or none: the client's own.
// A server is verified by the configured name, or by the one it is dialed with.
func (c RedisConfig) dialer() func(context.Context, string, string) (net.Conn, error) {
	if c.TLS == nil {
		return nil
	}
	d := &net.Dialer{Timeout: dialTime, KeepAlive: 5 * time.Minute}
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		return tlsconf.Dial(ctx, d, address, c.TLS)
	}
}

// Dial makes a client, which connects when it is first used.
//
// The ACL user needs hello, auth, ping, echo, hgetall and "client|tracking", in a
// cluster also "cluster|slots" and command; for operators' writes hset, hdel,
// del, multi and exec.
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
	return redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs:         slices.Clone(c.Addresses), // a client of a cluster appends to it
		MasterName:    c.SentinelMaster,
		IsClusterMode: c.Cluster,
		Dialer:        c.dialer(),

		CredentialsProvider: c.credentials,

		// RESP2 has no messages out of turn, so replies cannot be confused with
		// them; and nothing is sent at connect whose late reply could shift the
		// replies of the next user (CVE-2025-29923 was CLIENT SETINFO).
		Protocol:        2,
		DisableIdentity: true,

		DialTimeout:           dialTime,
		ReadTimeout:           ioTime,
		WriteTimeout:          ioTime,
		PoolTimeout:           ioTime,
		ContextTimeoutEnabled: true,
		// One more try, because a pooled connection may be one the server has
		// closed; the breaker and the cache do the rest.
		MaxRetries:      1,
		MinRetryBackoff: 5 * time.Millisecond,
		MaxRetryBackoff: 50 * time.Millisecond,
		DialerRetries:   1,

		ReadBufferSize:  4 << 10,
		WriteBufferSize: 4 << 10,
		PoolSize:        32,
		ConnMaxIdleTime: 5 * time.Minute,
	}), nil
}
