// Package limit decides who may come in, and how fast: how many connections an
// address and a user may have, how often an address may come, what failed
// logins cost, and who is banned.
//
// It counts locally and, where there is Redis, together with the other
// gateways. Nothing ever waits for Redis longer than ioTime, and while Redis is
// away the local limits hold and the bans stay as they were last known.
//
// It does not know IMAP, how a password is checked, or what a client is told;
// it never closes a connection. A Visit is one connection and belongs to the
// goroutine that serves it; whoever called Arrive calls Leave. The Gate is
// everybody's, and each of its parts has a lock of its own, of which nobody holds
// two, and none while asking Redis or waiting.
//
//	visit.go      one connection: Arrive, Move, Attempt, Failed, Enter, Leave
//	places.go     how many there are, here
//	lease.go      how many there are, at all gateways; farewell.go the last word of them
//	judge.go      what a login owes for earlier failures
//	open.go       logins under way, which may yet fail
//	failures.go   the failures, bounded; window.go counts them
//	good.go       from where a user has logged in
//	bans.go       who is banned; change.go follows the bans of others
//	spray.go      many users, few guesses each
//	budget.go     what a user's sessions may use
//	know.go       what all gateways know of failures and of users' networks
//	shared.go     the way to Redis; health.go how it fares; script.go what is run there
//	operator.go   for the operator's commands
package limit
