// Package oauth answers one question about a bearer token: whom did the
// provider give it to? Either the token says so itself, as a JWT that one of
// the provider's published keys has signed (RFC 9068, OpenID Connect), or the
// provider is asked (RFC 7662); where both are configured, both must agree.
//
// A token that is not good is ErrInvalid. A provider that is away, slow or
// confused is ErrUnavailable, and never makes a token look wrong: programs
// throw away what is called wrong. Nothing is asked before the first token
// comes, so a gateway starts while its provider is away.
//
// The package does not know SASL, IMAP, canonical names, or which accounts
// exist: a Subject's name is what a claim says, and auth makes a user of it.
//
// A Verifier starts no goroutine and is safe for concurrent use. The keyring
// owns the provider's keys; the asker owns the answers that are kept.
package oauth
