// Package oauth verifies bearer tokens and returns the user that the provider issued one to.
// The token is a JWT signed with one of the provider's published keys (RFC 9068, OpenID
// Connect), or the provider introspects it (RFC 7662). If both are configured, both must agree.
//
// An invalid token is ErrInvalid. A provider that is down, slow or inconsistent is
// ErrUnavailable and never makes a token invalid, because clients discard an invalid token. The
// first request to the provider is made for the first token, so a gateway starts while the
// provider is down.
//
// The package does not know SASL, IMAP, canonical names or accounts. A Subject's name is the
// value of a claim; package auth maps it to a user.
//
// A Verifier starts no goroutine and is safe for concurrent use. The keyring owns the
// provider's keys; the introspector owns the cache of responses.
package oauth
