package config

import (
	"slices"
	"strings"

	"imapgate/routing"
)

const sentinelPasswordKey = "redis.sentinel_password_file"

func (c checker) checkRedis() {
	r := c.cfg.Redis
	if r == nil {
		if c.cfg.Routing.Source == "redis" {
			c.add("routing.source", "is redis, but there is no redis block")
		}
		if i := slices.Index(c.cfg.Auth.Methods, "redis"); i >= 0 {
			c.add(ItemKey("auth.methods", i), "is redis, but there is no redis block")
		}
		return
	}
	switch {
	case len(r.Addresses) == 0:
		c.add("redis.addresses", "is empty: at least one is needed")
	case r.Cluster && r.SentinelMaster != "":
		c.add("redis.sentinel_master", "is for servers with sentinels, not for a cluster")
	case len(r.Addresses) > 1 && !r.Cluster && r.SentinelMaster == "":
		c.add("redis.addresses", "several addresses need cluster: true or sentinel_master")
	}
	if r.Cluster && r.Database > 0 {
		c.add("redis.database", "is for one server or sentinels: a cluster has database 0 only")
	}
	if r.SentinelUsername != "" && r.SentinelMaster == "" {
		c.add("redis.sentinel_username", "is used only with sentinel_master")
	}
	if r.SentinelPasswordFile != "" && r.SentinelMaster == "" {
		c.add("redis.sentinel_password_file", "is used only with sentinel_master")
	}
	for i, address := range r.Addresses {
		c.checkRedisSocket(ItemKey("redis.addresses", i), address)
	}
	for key, set := range map[string]bool{"ca": r.CA != "", "server_name": r.ServerName != "", "client_certificate": r.ClientCertificate != nil} {
		if set && !r.TLS {
			c.add("redis."+key, "is used only with tls: true")
		}
	}
	c.checkKeyPair("redis.client_certificate", r.ClientCertificate)
}

// checkRedisSocket refuses a unix socket where Redis cannot use one.
func (c checker) checkRedisSocket(key, address string) {
	if !strings.HasPrefix(address, unixScheme) {
		return
	}
	switch r := c.cfg.Redis; {
	case r.Cluster || r.SentinelMaster != "":
		c.add(key, "a unix socket leads to one server: the nodes of a cluster and sentinels are host:port")
	case r.TLS:
		c.add(key, "Redis does not support TLS on a unix socket: leave out tls")
	}
}

// readRedis reads the passwords of the servers and of the sentinels.
func (s secrets) readRedis(r *routing.RedisSettings) {
	const server, sentinel = "IMAPGATE_REDIS_PASSWORD", "IMAPGATE_REDIS_SENTINEL_PASSWORD"
	r.Password = s.readSecret("redis.password_file", r.PasswordFile, server)
	if r.SentinelMaster == "" {
		return // without sentinels the variable is ignored
	}
	r.SentinelPassword = s.readSecret(sentinelPasswordKey, r.SentinelPasswordFile, sentinel)
	if r.SentinelUsername != "" && r.SentinelPassword.IsZero() {
		s.add("redis.sentinel_username", "needs sentinel_password_file or %s", sentinel)
	}
}
