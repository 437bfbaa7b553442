package main

import (
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

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

// dialRedis makes the client of the configured Redis, or none.
func dialRedis(r *config.Redis) (redis.UniversalClient, error) {
	if r == nil {
		return nil, nil
	}
	secured, err := redisTLS(r)
	if err != nil {
		return nil, err
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

// redisTLS is nil for a Redis without TLS. The server's name is left open:
// go-redis verifies each server of a cluster by the name it was dialed with.
func redisTLS(r *config.Redis) (*tls.Config, error) {
	if !r.TLS {
		return nil, nil
	}
	host, _, err := net.SplitHostPort(r.Addresses[0])
	if err != nil {
		return nil, config.At("redis.addresses", err)
	}
	made, err := tlsconf.Client(tlsconf.ClientConfig{CA: r.CA, ServerName: host})
	if err != nil {
		return nil, config.At("redis.ca", err)
	}
	made.ServerName = ""
	made.NextProtos = nil // Redis has no ALPN name, and is not IMAP
	return made, nil
}

// upstreamConfig is one backend, with its CA file read. Instance is left open.
func upstreamConfig(name string, b config.Backend, l config.Limits) (upstream.Config, error) {
	made := upstream.Config{
		Name:    name,
		Address: b.Address,
		TLSMode: upstream.TLSMode(b.TLS),
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
	if made.TLSMode == upstream.NoTLS {
		return made, nil
	}
	key, server := config.Below("backends", name), b.ServerName
	if server == "" {
		host, _, err := net.SplitHostPort(b.Address)
		if err != nil {
			return made, config.At(key+".address", err)
		}
		server = host
	}
	made.Socket = func(tcp *net.TCPConn) net.Conn { return quiet.NewSocket(tcp) }
	var err error
	if made.TLS, err = tlsconf.Client(tlsconf.ClientConfig{CA: b.CA, ServerName: server}); err != nil {
		return made, config.At(key+".ca", err)
	}
	return made, nil
}

// reportExpiry tells the metrics when each served certificate ends.
func (g *gateway) reportExpiry(report func(file string, notAfter time.Time)) {
	for _, c := range g.tls.Certificates() {
		report(c.File, c.NotAfter)
	}
}
