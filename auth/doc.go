// Package auth verifies logins. Authenticate turns a Login, the claim of a client, into an
// Identity, the verified user.
//
// These methods can be configured, and are asked in the operator's order:
//
//   - file: a passwd-file in Dovecot's format
//   - redis: a hash from a PasswordLookup
//   - http: an authentication server
//   - oauth: a verifier of bearer tokens
//   - passthrough: the backend decides
//
// A method that knows the user decides. A method that does not, or that cannot verify the kind
// of credential, leaves the login to the next. When no method knows the user, the error is
// ErrDenied and takes as long as a wrong password. A source that cannot answer is
// ErrUnavailable; it never counts as an unknown user.
//
// An Exchange turns the messages of a SASL mechanism into a Login. With SCRAM and EXTERNAL the
// mechanism verifies the client itself. Their Login holds the outcome and no password. It goes
// through Authenticate like every other, so that a wrong proof counts as a wrong password.
//
// The package does not know IMAP, base64, sockets, limits or backends. The only delay it knows
// hides whether the keys for a SCRAM challenge came from a cache or from Redis. It keeps no
// record of logins and no cache of right passwords: a changed password is in force from the
// next login on.
//
// Authenticator owns the methods and the verifier, which bounds how many passwords are hashed
// at once. The users of the file belong to passwdFile, and only Run changes them. An Exchange
// belongs to the session that started it.
package auth
