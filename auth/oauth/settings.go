package oauth

import (
	"time"

	"imapgate/internal/identity"
	"imapgate/tlsconf"
)

// Settings are the settings of one provider. Issuer or IntrospectionURL is required.
type Settings struct {
	Issuer           string   `yaml:"issuer" example:"https://id.example.org/realms/mail" reload:"new" doc:"The provider, exactly as iss in its tokens names it. With it, tokens must be JWTs and are verified with the keys that the provider publishes; its discovery document names them. The keys are fetched again every 15 minutes, and when a token is signed with an unknown one."`
	Audience         []string `yaml:"audience" example:"[imap]" reload:"new" doc:"One of them must be in a token's aud. Required with issuer: without it a token that the provider issued for any other service would open a mailbox."`
	AuthorizedParty  []string `yaml:"authorized_party" example:"[thunderbird]" reload:"new" doc:"The clients whose tokens are accepted, as azp or client_id names them. Empty: all clients of the provider."`
	UsernameClaim    string   `yaml:"username_claim" default:"email" form:"required" example:"preferred_username" reload:"new" doc:"The claim that holds the user's name; default_domain is appended if it has no @. The default is Dovecot's. Users must not be able to set it to another user's name; with email, a token with email_verified: false is refused."`
	Scope            string   `yaml:"scope" form:"label" example:"imap" reload:"new" doc:"A scope that a token must have."`
	IntrospectionURL string   `yaml:"introspection_url" example:"https://id.example.org/realms/mail/protocol/openid-connect/token/introspect" reload:"new" doc:"Each token is sent to the provider for verification (RFC 7662), so that a revoked one is refused. Without issuer, a token may have any form, and audience, authorized_party or scope is needed. With issuer, both the signature and the provider must confirm the token."`
	ClientID         string   `yaml:"client_id" form:"label" example:"imapgate" reload:"new" doc:"The gateway's own client id at the provider, for introspection_url."`
	ClientSecretFile string   `yaml:"client_secret_file" file:"secret" example:"/run/secrets/oauth" reload:"new" doc:"File with the client's secret, or set IMAPGATE_OAUTH_CLIENT_SECRET."`
	CA               string   `yaml:"ca" file:"tls" reload:"new" doc:"PEM file of the CAs to trust. Default: the system's."`

	ClientCertificate *tlsconf.CertFiles `yaml:"client_certificate" doc:"Presented to a provider that requests one (RFC 8705)."`

	CacheTTL time.Duration `yaml:"cache_ttl" default:"60s" min:"0s" max:"1h" reload:"new" doc:"For introspection_url: a token that the provider has confirmed is accepted for this long, and never beyond its own expiry. A keyed hash of it is kept, not the token. 0s: the provider is asked each time."`

	SessionGrace time.Duration `yaml:"session_grace" default:"0s" min:"0s" max:"24h" reload:"new" doc:"A session opened with a token is ended this long after the token expires, in every mode. 0s: it is not ended, which suits most. Clients get a new token only when they log in again: a mailbox in IDLE would be disconnected as often as tokens expire, typically every hour. Otherwise at least 30s, because clocks differ and a token is accepted for that long after it expires. A token without a known expiry (an introspection need not report one) ends no session."`

	ClientSecret identity.Secret `yaml:"-"` // from ClientSecretFile or the environment
}
