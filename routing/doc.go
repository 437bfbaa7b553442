// Package routing decides on which backend a user's mailboxes are.
//
// A route comes from Redis (single, Sentinel or Cluster) or from the configuration: from the
// user's own record, else from the domain's, else from the default. Routes are cached. Redis
// notifies gateways of changed records, so that a plain redis-cli HSET applies to the next
// login within a second. While these notifications are not received, a cached route lives for
// its ttl. Live sessions keep their route.
//
// A failure is never an answer. If Redis is down, slow or inconsistent, or a record is
// malformed, the last good route stays in use; without one, lookups return ErrUnavailable. A
// failure never means "no such user" and never "take the domain's backend": during a
// migration, that would deliver mail to the wrong server.
//
// A record that disappears is a special case, because a flushed Redis must neither send all
// users to the default nor refuse them all. After an invalidation of its key (DEL, expiry),
// the absence of a record is trusted at once. Without an invalidation, as after a lost
// connection, the last good route stays in use until the record was missing twice, five
// seconds apart. No absence is trusted after the store lost most of the records it was seen to
// have (FLUSHALL, a lost volume, an empty replica): see sample.go and storeloss.go.
//
// The package knows the names of backends and nothing else about them. It does not dial them
// and does not check passwords, but it returns the password hash of a user's record.
//
// A Router owns its cache, its snapshot file and the connections that receive changes. The
// Redis client belongs to the caller, who closes it after Run has returned.
package routing
