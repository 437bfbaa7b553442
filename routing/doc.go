// Package routing says on which backend a user lives.
//
// A route comes from Redis (single, Sentinel or Cluster) or from the
// configuration: the user's own record, else the record of the domain, else the
// default. Answers are cached. Redis itself says when a record changed, so that
// a plain redis-cli HSET decides the next login within a second; while that
// channel is down an answer lives for its ttl. Live sessions stay where they are.
//
// One rule stands above the others: trouble is never an answer. A Redis that is
// away, slow or confused, and a record that is malformed, mean "keep the last
// good answer", and without one ErrUnavailable. They never mean "no such user"
// and never "take the domain's backend": during a migration that would deliver
// mail to the wrong server.
//
// A record that disappears is a special case, because a flushed Redis must not
// send everybody to the default, nor deny everybody. When Redis names the key
// (DEL, expiry), its absence is believed at once. When it does not (a channel that
// was down), the last good answer is kept until the record was seen missing twice,
// five seconds apart. And no absence is believed of a store that lost most of the
// records it was seen to have (FLUSHALL, a lost volume, an empty replica): see
// sample.go and emptied.go.
//
// The package deliberately does not know what a backend is, only which names
// exist; it neither dials one nor checks a password, though it hands out the
// hash in the user's record.
//
// A Router owns its cache, its snapshot file and the connections that follow
// changes. The Redis client belongs to the caller, who closes it after Run has
// returned.
package routing
