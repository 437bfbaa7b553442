// Package auth answers one question: who is it? A Login, which is what a client
// said, becomes an Identity, which somebody vouches for, in Authenticate and
// nowhere else.
//
// Three methods are asked in the operator's order: file (a passwd-file as
// Dovecot reads it), redis (a hash that a lookup function brings) and
// passthrough (the backend decides). A method that knows the user decides; one
// that does not passes the question on; when nobody knows, the answer is
// ErrDenied and has cost as much as a wrong password. A source that cannot
// answer is ErrUnavailable: it never counts as "does not know".
//
// The package does not know IMAP, base64, sockets, limits, delays, or where a
// user's mailbox lives. It keeps no record of who logged in and no cache of
// right passwords: a changed password holds from the next login on.
//
// Authenticator owns the methods and the verifier that bounds how many
// passwords are hashed at once; passwdFile owns the users of the file and is
// changed by Run alone; an Exchange belongs to the session that started it.
package auth
