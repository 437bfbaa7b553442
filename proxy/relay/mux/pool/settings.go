package pool

import "time"

// Settings are the settings of one backend's pool. With PoolIdleTimeout 0 no connection is
// pooled.
type Settings struct {
	PoolIdleTimeout    time.Duration `yaml:"pool_idle_timeout" was:"logout_reuse_ttl" default:"60s" min:"0s" max:"30m" reload:"live" doc:"After LOGOUT a connection is kept this long for the next login of the same account. 0s: not at all."`
	MaxAge             time.Duration `yaml:"max_age" default:"1h" min:"1m" max:"24h" reload:"live" doc:"A connection older than this is not reused."`
	CredentialCache    bool          `yaml:"credential_cache" was:"cred_cache" default:"false" reload:"live" doc:"For the auth method passthrough: accept a password, never a token, that the backend has recently accepted, so that a kept connection can be used. Memory holds only a keyed hash of it. Without this each login goes to the backend, on a connection of its own. With it an old password stays valid here until the new one is first used, for up to credential_cache_ttl."`
	CredentialCacheTTL time.Duration `yaml:"credential_cache_ttl" was:"cred_ttl" default:"300s" min:"1s" max:"1h" reload:"live" doc:"For credential_cache: how long a password is accepted after the backend verified it. Use does not extend it."`
	MaxPerUser         int           `yaml:"max_per_user" default:"64" min:"0" max:"100000" reload:"live" doc:"Connections of one user to this backend. In reuse and resume every client has its own while it is logged in, and a household or an office with one account has many clients. Keep the backend's own bound (Dovecot: mail_max_userip_connections) above it, since all connections come from the gateway's address. One of them is an auxiliary connection of the gateway. A client beyond the bound waits for command_hold_timeout and is then refused. 0: no bound."`
	MaxTotal           int           `yaml:"max_total" default:"0" min:"0" max:"10000000" reload:"live" doc:"Connections of all users to this backend, including idle ones, which are closed first. 0: no bound."`
}
