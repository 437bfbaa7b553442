//go:build unix

package testbed

import (
	"imapgate/internal/testkit"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// SentinelName is the name of the primary in the sentinels' configuration.
const SentinelName = "routes"

// RedisSentinel is a primary, its replica, and three sentinels that watch them.
type RedisSentinel struct {
	// Set once.
	Addresses []string // of the sentinels
	t         testing.TB
	servers   [2]*Redis
	sentinels []*Redis // for redis-cli and Freeze only
}

// StartRedisSentinel starts all five and returns when every sentinel knows the others and
// the replica. A failover is then possible.
func StartRedisSentinel(t testing.TB) *RedisSentinel {
	t.Helper()
	s := &RedisSentinel{t: t}
	s.servers[0] = StartRedis(t)
	s.servers[1] = StartRedis(t, "--replicaof", "127.0.0.1", strconv.Itoa(s.servers[0].port), "--repl-diskless-sync-delay", "0")
	testkit.Eventually(t, "the replica to be in sync", func() bool {
		return strings.Contains(s.servers[1].CLI("info", "replication"), "master_link_status:up")
	})
	for range 3 {
		s.startSentinel()
	}
	testkit.Eventually(t, "the sentinels to know each other", func() bool {
		return !slices.ContainsFunc(s.sentinels, func(r *Redis) bool {
			fields := strings.Fields(r.CLI("sentinel", "master", SentinelName))
			return fieldAfter(fields, "num-slaves") != "1" || fieldAfter(fields, "num-other-sentinels") != "2"
		})
	})
	return s
}

// fieldAfter returns the field that follows name, or "".
func fieldAfter(fields []string, name string) string {
	if i := slices.Index(fields, name); i >= 0 && i+1 < len(fields) {
		return fields[i+1]
	}
	return ""
}

func (s *RedisSentinel) startSentinel() {
	s.t.Helper()
	r := newRedis(s.t)
	conf := filepath.Join(r.dir, "sentinel.conf")
	OnFreePorts(s.t, 1, func(ports []int) error {
		r.port, r.Address = ports[0], Loopback(ports[0])
		text := "bind 127.0.0.1\nport " + strconv.Itoa(r.port) + "\ndir " + r.sysroot.innerPath(r.dir) +
			"\nsentinel monitor " + SentinelName + " 127.0.0.1 " + strconv.Itoa(s.servers[0].port) + " 2" +
			"\nsentinel down-after-milliseconds " + SentinelName + " 1000" +
			"\nsentinel failover-timeout " + SentinelName + " 5000\n"
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			return err
		}
		sentinel, program := locateProgram(s.t, "redis-sentinel", "redis-sentinel")
		p, err := sentinel.start(s.t, program, sentinel.innerPath(conf))
		if err != nil {
			return err
		}
		// "+monitor" is printed after the port is bound.
		err = p.WaitUntil("watch its primary", func() bool { return strings.Contains(p.Output(), "+monitor master") })
		if err != nil && strings.Contains(p.Output(), "Address already in use") {
			return ErrPortTaken
		}
		r.process = p
		return err
	})
	s.sentinels = append(s.sentinels, r)
	s.Addresses = append(s.Addresses, r.Address)
}

// Primary returns the server the sentinels name now.
func (s *RedisSentinel) Primary() *Redis {
	s.t.Helper()
	addr := strings.Fields(s.sentinels[0].CLI("sentinel", "get-master-addr-by-name", SentinelName))
	i := slices.IndexFunc(s.servers[:], func(r *Redis) bool { return len(addr) == 2 && strconv.Itoa(r.port) == addr[1] })
	if i < 0 {
		s.t.Fatalf("the sentinels name %q as primary, which is none of ours", addr)
	}
	return s.servers[i]
}

// Servers returns the two data servers.
func (s *RedisSentinel) Servers() []*Redis { return s.servers[:] }

// Sentinels returns the three sentinels. They can be frozen, but not restarted.
func (s *RedisSentinel) Sentinels() []*Redis { return s.sentinels }

// Failover starts a failover and returns when the other server is the primary.
func (s *RedisSentinel) Failover() {
	s.t.Helper()
	oldPrimary := s.Primary()
	testkit.Eventually(s.t, "a sentinel to begin a failover", func() bool {
		_, err := s.sentinels[0].TryCLI("sentinel", "failover", SentinelName)
		return err == nil
	})
	testkit.Eventually(s.t, "the failover to name another primary", func() bool { return s.Primary() != oldPrimary })
}

// AwaitDemotion waits until the old primary is a replica. Until then it accepts writes,
// which are lost.
func (s *RedisSentinel) AwaitDemotion() {
	s.t.Helper()
	primary := s.Primary()
	for _, r := range s.servers {
		testkit.Eventually(s.t, "the old primary to become a replica", func() bool {
			role, err := r.TryCLI("role") // fails while the server drops its connections
			return r == primary || err == nil && strings.Contains(role, "slave")
		})
	}
}

// RedisCluster is a cluster of three primaries and a replica of the first.
type RedisCluster struct {
	// Set once.
	Addresses []string
	Nodes     []*Redis // three primaries, then the replica of the first
	t         testing.TB
}

// StartRedisCluster starts four servers and returns when all of them know each other and
// every slot.
func StartRedisCluster(t testing.TB) *RedisCluster {
	t.Helper()
	c := &RedisCluster{t: t}
	for range 4 {
		n := newRedis(t)
		OnFreePorts(t, 2, func(ports []int) error {
			// The default port of the bus is port + 10000, which may be taken or out of
			// range.
			n.args = []string{
				"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(ports[1]),
				"--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0",
			}
			return n.listen(ports[0])
		})
		c.Nodes, c.Addresses = append(c.Nodes, n), append(c.Addresses, n.Address)
	}
	for i, slots := range [][2]string{{"0", "5460"}, {"5461", "10922"}, {"10923", "16383"}} {
		c.Nodes[i].CLI("cluster", "addslotsrange", slots[0], slots[1])
		c.Nodes[i].CLI("cluster", "set-config-epoch", strconv.Itoa(i+1))
	}
	for _, n := range c.Nodes[1:] {
		bus := n.args[slices.Index(n.args, "--cluster-port")+1]
		c.Nodes[0].CLI("cluster", "meet", "127.0.0.1", strconv.Itoa(n.port), bus)
	}
	c.awaitClusterOK()
	first, replica := c.Nodes[0], c.Nodes[3]
	id := first.CLI("cluster", "myid")
	replica.CLI("cluster", "replicate", id)
	testkit.Eventually(t, "the replica to be in sync", func() bool {
		return strings.Contains(replica.CLI("info", "replication"), "master_link_status:up")
	})
	// A failover needs the votes of nodes that know the replica's primary.
	testkit.Eventually(t, "every node to know the replica", func() bool {
		return !slices.ContainsFunc(c.Nodes, func(n *Redis) bool {
			return !strings.Contains(n.CLI("cluster", "nodes"), "slave "+id)
		})
	})
	return c
}

// awaitClusterOK waits until every node knows all others and every slot has a primary.
func (c *RedisCluster) awaitClusterOK() {
	c.t.Helper()
	testkit.Eventually(c.t, "the cluster to be complete", func() bool {
		return !slices.ContainsFunc(c.Nodes, func(n *Redis) bool {
			info := n.CLI("cluster", "info")
			return !strings.Contains(info, "cluster_state:ok") || !strings.Contains(info, "cluster_known_nodes:4")
		})
	})
}

// CLI runs redis-cli, which follows redirects to the node that has the key.
func (c *RedisCluster) CLI(args ...string) string {
	c.t.Helper()
	return c.Nodes[1].CLI(append([]string{"-c"}, args...)...)
}

// PrimaryOf returns the primary that has a key.
func (c *RedisCluster) PrimaryOf(key string) *Redis {
	c.t.Helper()
	slot, err := strconv.Atoi(c.Nodes[1].CLI("cluster", "keyslot", key))
	if err != nil {
		c.t.Fatalf("ask for the slot of %s: %v", key, err)
	}
	return c.Nodes[min(slot/5461, 2)]
}

// Failover makes the replica of the first node the primary of its slots.
func (c *RedisCluster) Failover() {
	c.t.Helper()
	c.Nodes[3].CLI("cluster", "failover")
	testkit.Eventually(c.t, "the replica to be a primary", func() bool {
		return strings.Contains(c.Nodes[3].CLI("role"), "master")
	})
	// Until it is a replica the old primary still serves its slots.
	testkit.Eventually(c.t, "the old primary to become a replica", func() bool {
		return strings.Contains(c.Nodes[0].CLI("role"), "slave")
	})
}
