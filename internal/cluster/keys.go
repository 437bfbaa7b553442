package cluster

import (
	"net/netip"
	"strings"

	"imapgate/internal/identity"
)

// keys makes the names of everything in Redis. No key can become another: a user has no
// colon, and a network, which may, comes last.
type keys struct{ prefix string }

func (k keys) gateways() string             { return k.prefix + "limit:gateways" }
func (k keys) sessions(count string) string { return k.prefix + "limit:sessions:" + count }
func (k keys) rate(net netip.Prefix) string { return k.prefix + "limit:rate:" + net.String() }
func (k keys) failedNet(net netip.Prefix) string {
	return k.prefix + "limit:failed:net:" + net.String()
}
func (k keys) failedUser(u identity.User) string { return k.prefix + "limit:failed:user:" + u.String() }
func (k keys) failedPair(u identity.User, net netip.Prefix) string {
	return k.prefix + "limit:failed:pair:" + u.String() + ":" + net.String()
}
func (k keys) known(u identity.User) string   { return k.prefix + "limit:good:" + u.String() }
func (k keys) active(net netip.Prefix) string { return k.prefix + "limit:lived:" + net.String() }
func (k keys) upload(u identity.User, day string) string {
	return k.prefix + "limit:upload:" + day + ":" + u.String()
}

// bans are the keys of the bans. They share a slot of a Redis Cluster.
func (k keys) bans() []string {
	return []string{k.prefix + "ban:{all}:nets", k.prefix + "ban:{all}:ends", k.prefix + "ban:{all}:changes", k.prefix + "ban:{all}:count"}
}

// probe returns an unused key in the same slot of a Redis Cluster as another, to which the
// same rights apply.
func (k keys) probe(of string) string {
	area := "limit:probe:"
	if strings.HasPrefix(of, k.prefix+"ban:") {
		area = "ban:probe:"
	}
	return k.prefix + area + "{" + hashTag(of) + "}"
}

// hashTag returns the part of a key that determines its slot.
func hashTag(key string) string {
	_, after, found := strings.Cut(key, "{")
	if tag, _, closed := strings.Cut(after, "}"); found && closed && tag != "" {
		return tag
	}
	return key
}

// These name counts of sessions, for Enter.

// AllSessions counts all sessions.
const AllSessions = "all"

// UserSessions counts the sessions of a user.
func UserSessions(u identity.User) string { return "user:" + u.String() }

// NetSessions counts the sessions from a network.
func NetSessions(net netip.Prefix) string { return "net:" + net.String() }

// PairSessions counts the sessions of a user from a network.
func PairSessions(u identity.User, net netip.Prefix) string {
	return "pair:" + u.String() + ":" + net.String()
}
