package cluster

import (
	"net/netip"
	"strings"

	"imapgate/internal/identity"
	"imapgate/internal/limit/counter"
	"imapgate/internal/limit/penalty"
)

// keys makes the names of everything in Redis. No key can become another: a user has no
// colon, and a network, which may, comes last.
type keys struct{ prefix string }

func (k keys) gateways() string             { return k.prefix + "limit:gateways" }
func (k keys) rate(net netip.Prefix) string { return k.prefix + "limit:rate:" + net.String() }
func (k keys) upload(u identity.User, day string) string {
	return k.prefix + "limit:upload:" + day + ":" + u.String()
}

// sessions is where a count of sessions is.
func (k keys) sessions(of counter.Key) string {
	switch area := k.prefix + "limit:sessions:"; of.Scope {
	case counter.AllSessions:
		return area + "all"
	case counter.UserSessions:
		return area + "user:" + of.User.String()
	case counter.AddressSessions:
		return area + "net:" + of.Net.String()
	case counter.PairSessions:
		return area + "pair:" + of.User.String() + ":" + of.Net.String()
	}
	panic("cluster: a count of one gateway alone has no key")
}

// failed is where failures are counted.
func (k keys) failed(s penalty.Subject) string {
	switch area := k.prefix + "limit:failed:"; {
	case s.User.IsZero():
		return area + "net:" + s.Net.String()
	case s.Net.IsValid():
		return area + "pair:" + s.User.String() + ":" + s.Net.String()
	default:
		return area + "user:" + s.User.String()
	}
}

// known is where successful logins are noted: those of a user, and those from a network.
func (k keys) known(s penalty.Subject) string {
	if s.User.IsZero() {
		return k.prefix + "limit:lived:" + s.Net.String()
	}
	return k.prefix + "limit:good:" + s.User.String()
}

// bans are the keys of the bans. They share a slot of a Redis Cluster.
func (k keys) bans() []string {
	area := k.prefix + "ban:{all}:"
	return []string{area + "nets", area + "ends", area + "changes", area + "count"}
}

// probe returns an unused key in the same slot of a Redis Cluster as another, to which the
// same rights apply. That of such a key is the key itself.
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
