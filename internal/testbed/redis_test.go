//go:build unix

package testbed

import (
	"strings"
	"testing"
)

func TestRedisKeepsKeysAcrossAKill(t *testing.T) {
	r := StartRedis(t)
	r.CLI("hset", "k", "f", "v")
	r.Kill()
	if _, err := r.TryCLI("ping"); err == nil {
		t.Fatal("a killed server answers")
	}
	r.Restart()
	if got := r.CLI("hget", "k", "f"); got != "v" {
		t.Fatalf("after the restart the field is %q", got)
	}
	if _, err := r.TryCLI("hget", "k"); err == nil {
		t.Fatal("an error reply is not an error")
	}
}

func TestSentinelsFailOverToTheReplica(t *testing.T) {
	s := StartRedisSentinel(t)
	before := s.Primary()
	before.CLI("set", "k", "v")
	before.CLI("wait", "1", "1000")
	s.Failover()
	if now := s.Primary(); now == before || now.CLI("get", "k") != "v" {
		t.Fatal("the new primary is the old one, or lost the key")
	}
}

func TestClusterServesEveryKeyFromTheNodeThatOwnsIt(t *testing.T) {
	c := StartRedisCluster(t)
	for _, key := range []string{"a", "b", "c", "d", "e", "f"} {
		c.CLI("set", key, "v")
		if got := c.PrimaryOf(key).CLI("get", key); got != "v" {
			t.Errorf("the owner of %s answers %q", key, got)
		}
	}
	c.Failover()
	if !strings.Contains(c.Nodes[3].CLI("role"), "master") {
		t.Fatal("the replica was not promoted")
	}
}
