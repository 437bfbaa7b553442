package routing

import (
	"time"

	"imapgate/internal/identity"
	"imapgate/tlsconf"
)

// Settings are where routes come from and how long they are valid.
type Settings struct {
	Source   string        `yaml:"source" default:"redis" oneof:"redis static http" reload:"restart" doc:"redis: the route records, which any Redis client can change. static: the block below. http: the auth server of the method http names the backend with each login. Its Auth-Server and Auth-Port must be the address of a backend: its IP address, or one that its name resolves to now (remembered for cache.ttl). The other sources ignore these two headers."`
	Static   Static        `yaml:"static" doc:"Used with source: static. The user's own entry takes precedence over the domain's, and that over default."`
	Cache    CacheSettings `yaml:"cache" doc:"How long answers of Redis are used."`
	Snapshot string        `yaml:"snapshot" file:"own" form:"path" example:"/var/lib/imapgate/routes" reload:"restart" doc:"File for the known routes. With it, a gateway that is restarted while Redis is down still serves known users, and one that is restarted after Redis has lost its records detects the loss. It must belong to the gateway's user or root, and no other user may have write access. Empty: none is kept."`
}

// Static holds the routes of the configuration file.
type Static struct {
	Users   map[string]string `yaml:"users" example:"{alice@example.org: east}" reload:"new" doc:"User to backend."`
	Domains map[string]string `yaml:"domains" example:"{example.org: east}" reload:"new" doc:"Domain to backend."`
	Default string            `yaml:"default" reload:"new" doc:"Backend of all other users. Empty: they are refused."`
}

// CacheSettings bound the age of cached routes.
type CacheSettings struct {
	TTL      time.Duration `yaml:"ttl" default:"60s" min:"1s" max:"24h" reload:"live" doc:"How long an answer is fresh. Changes normally arrive within a second; this is the bound while the invalidation connection is down."`
	Stale    time.Duration `yaml:"stale" default:"24h" min:"0s" max:"720h" reload:"live" doc:"While Redis gives no answer, the last good one is used for this long."`
	Negative time.Duration `yaml:"negative" default:"5s" min:"0s" max:"5m" reload:"live" doc:"How long an answer that a user does not exist is fresh."`
}

// RedisSettings are the settings of the connection to Redis.
type RedisSettings struct {
	Addresses      []string `yaml:"addresses" default:"127.0.0.1:6379" form:"redis" reload:"restart" doc:"host:port of the server, or unix:///path of its socket; host:port of some nodes with cluster; of the sentinels with sentinel_master."`
	Cluster        bool     `yaml:"cluster" default:"false" reload:"restart" doc:"The addresses are nodes of a Redis Cluster."`
	Database       int      `yaml:"database" default:"0" min:"0" max:"1000000" reload:"restart" doc:"Number of the database (SELECT). A cluster has only 0. Independent gateways also need different prefixes, because Redis announces changes for all databases."`
	SentinelMaster string   `yaml:"sentinel_master" form:"label" reload:"restart" doc:"Name of the master set. When set, the addresses are sentinels."`
	Username       string   `yaml:"username" form:"label" reload:"restart" doc:"ACL user. docs/operating/redis.md lists the rights it needs."`
	PasswordFile   string   `yaml:"password_file" file:"secret" reload:"restart" doc:"File with the password, or set IMAPGATE_REDIS_PASSWORD."`

	SentinelUsername     string `yaml:"sentinel_username" form:"label" reload:"restart" doc:"ACL user of the sentinels, which do not use username and password_file."`
	SentinelPasswordFile string `yaml:"sentinel_password_file" file:"restart" reload:"restart" doc:"File with the password of the sentinels, or set IMAPGATE_REDIS_SENTINEL_PASSWORD. Left out: the sentinels need none."`

	TLS        bool   `yaml:"tls" default:"false" reload:"restart" doc:"Connect to Redis with TLS. The certificate is always verified."`
	CA         string `yaml:"ca" file:"tls" reload:"restart" doc:"PEM file of the CAs to trust. Default: the system's."`
	ServerName string `yaml:"server_name" form:"label" reload:"restart" doc:"The name its certificate must have; with cluster or sentinel_master, that of every server. Default: the host of the address."`

	ClientCertificate *tlsconf.CertFiles `yaml:"client_certificate" doc:"Presented to a Redis that requests one, which is the default of a Redis with TLS (tls-auth-clients)."`

	Prefix string `yaml:"prefix" default:"imapgate:" form:"prefix" reload:"restart" doc:"The prefix of every key."`

	Password         identity.Secret `yaml:"-"` // from PasswordFile or the environment
	SentinelPassword identity.Secret `yaml:"-"` // from SentinelPasswordFile or the environment
}
