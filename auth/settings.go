package auth

import "imapgate/internal/identity"

// Settings are the settings of authentication.
type Settings struct {
	Methods         []string           `yaml:"methods" default:"passthrough" oneof:"passthrough file redis http oauth" reload:"new" doc:"Tried in order; the first that knows the user decides. file: a passwd-file. redis: the field password of the user's record. http: an auth server that speaks the protocol of nginx's mail proxy; it decides about every password. oauth: bearer tokens are verified here. passthrough: the backend decides, with the client's own password or token; it must come last. A user whom only passthrough would verify cannot be routed to a backend with login: master."`
	DefaultDomain   string             `yaml:"default_domain" form:"domain" example:"example.org" reload:"new" doc:"Appended to a user name without @."`
	Names           identity.NameRules `yaml:"names" doc:"Which user names are valid, and how they are normalized."`
	Mechanisms      []string           `yaml:"mechanisms" oneof:"SCRAM-SHA-256-PLUS SCRAM-SHA-256 EXTERNAL PLAIN LOGIN OAUTHBEARER XOAUTH2" example:"[SCRAM-SHA-256-PLUS, SCRAM-SHA-256, PLAIN, LOGIN]" reload:"new" doc:"The SASL mechanisms offered; no other is accepted. Left out: PLAIN and LOGIN if a method verifies passwords, OAUTHBEARER and XOAUTH2 with the method oauth, EXTERNAL with external. SCRAM must be named: clients that support it prefer it, and it fails for every user whose password is not stored as {SCRAM-SHA-256}. OAUTHBEARER and XOAUTH2 with passthrough must be named too, because not every backend accepts tokens. PLUS is offered only inside TLS, EXTERNAL only to clients with a valid certificate."`
	SCRAMSecretFile string             `yaml:"scram_secret_file" file:"restart" example:"/run/secrets/scram" reload:"restart" doc:"File with a secret of at least 16 characters, or set IMAPGATE_SCRAM_SECRET; needed for SCRAM. It derives the salts that unknown users get, so all gateways must share it, and it must never change: a salt that changes reveals that the user does not exist. It also makes unknown users look like unavailable ones. openssl rand -base64 32 makes one."`
	SCRAMIterations int                `yaml:"scram_iterations" default:"100000" min:"4096" max:"1000000" reload:"new" doc:"The iteration count presented for users who have no password stored for SCRAM. It must be the count of the stored passwords, on all gateways: a different count reveals that a user exists. imapgate passwd uses 100000, doveadm pw 4096. A stored password with another count is reported as a warning in the log."`
	External        ExternalSettings   `yaml:"external" doc:"For the mechanism EXTERNAL: clients with certificates issued by tls.client_ca."`
	File            FileSettings       `yaml:"file" doc:"For the method file."`

	SCRAMSecret identity.Secret `yaml:"-"` // from SCRAMSecretFile or the environment
	NameRules   identity.Names  `yaml:"-"` // from DefaultDomain and Names
}

// ExternalSettings configure how a client certificate names its user.
type ExternalSettings struct {
	SAN string `yaml:"san" oneof:"email dns uri" reload:"new" doc:"The kind of subject alternative name that holds the user's name. email: alice@example.org. dns: the name as it is. uri: acct:alice@example.org (RFC 7565). A certificate must have exactly one of this kind; nothing else in it is used. Left out: EXTERNAL is not offered."`
}

// FileSettings name a passwd-file.
type FileSettings struct {
	Path string `yaml:"path" default:"/etc/imapgate/users" file:"users" form:"required" reload:"new" doc:"Lines of user:{SCHEME}hash, as in Dovecot's passwd-file. Watched: changes apply without a restart."`
}

// HashSettings bound the hashing of passwords.
type HashSettings struct {
	MaxPasswordHashes int `yaml:"max_password_hashes" was:"verifiers" default:"0" min:"0" max:"1024" reload:"live" doc:"Password hashes computed at a time. 0: one for each core."`
}
