// Package auth answers one question: who is it? A Login, which is what a client
// said, becomes an Identity, which somebody vouches for, in Authenticate and
// nowhere else.
//
// Methods are asked in the operator's order: file (a passwd-file as Dovecot
// reads it), redis (a hash that a lookup brings), http (an auth server), oauth (a
// verifier of bearer tokens) and passthrough (the backend decides). A method that
// knows the user decides; one that does not, or that cannot judge what the client
// has shown, passes the question on; when nobody knows, the answer is ErrDenied
// and has cost as much as a wrong password. A source that cannot answer is
// ErrUnavailable: it never counts as "does not know".
//
// Mechanisms are how clients say it: an Exchange turns the messages of one into a
// Login. With SCRAM and EXTERNAL the client proves itself to the mechanism; their
// Login holds the outcome and no password, and goes through Authenticate as every
// other, so that a wrong proof counts as a wrong password does.
//
// The package does not know IMAP, base64, sockets, limits, or where a user's
// mailbox lives, and of delays only the one that hides how a challenge of SCRAM
// was come by. It keeps no record of who logged in and no cache of
// right passwords: a changed password holds from the next login on.
//
// Authenticator owns the methods and the verifier that bounds how many
// passwords are hashed at once; passwdFile owns the users of the file and is
// changed by Run alone; an Exchange belongs to the session that started it.
package auth
