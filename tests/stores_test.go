package tests

import (
	"testing"

	"imapgate/internal/testbed"
	"imapgate/routing"
)

// store is a Redis of one of the three kinds, as an operator sees it.
type store struct {
	name   string
	config routing.RedisConfig
	cli    func(args ...string) error
	nodes  []*testbed.Redis // everything that keeps records
	others []*testbed.Redis // sentinels
}

// startStores starts one of each kind.
func startStores(t testing.TB) []store {
	t.Helper()
	single, sentinel, cluster := testbed.StartRedis(t), testbed.StartRedisSentinel(t), testbed.StartRedisCluster(t)
	return []store{
		{
			name: "single", config: routing.RedisConfig{Addresses: []string{single.Address}},
			cli: func(args ...string) error { return ran(single.Try(args...)) }, nodes: []*testbed.Redis{single},
		},
		{
			name:   "sentinel",
			config: routing.RedisConfig{Addresses: sentinel.Addresses, SentinelMaster: testbed.SentinelName},
			cli:    func(args ...string) error { return ran(sentinel.Primary().Try(args...)) },
			nodes:  sentinel.Servers(), others: sentinel.Sentinels(),
		},
		{
			name: "cluster", config: routing.RedisConfig{Addresses: cluster.Addresses, Cluster: true},
			cli:   func(args ...string) error { return ran(cluster.Nodes[1].Try(append([]string{"-c"}, args...)...)) },
			nodes: cluster.Nodes,
		},
	}
}

// ran keeps of a command whether it went well.
func ran(_ string, err error) error { return err }

// route says by redis-cli where a user lives; more are further fields and values.
func (s store) route(t testing.TB, user, backend string, more ...string) {
	t.Helper()
	if err := s.try(user, backend, more...); err != nil {
		t.Fatal(err)
	}
}

// try is route while Redis may be away.
func (s store) try(user, backend string, more ...string) error {
	return s.cli(append([]string{"HSET", routing.DefaultPrefix + "user:" + user, "backend", backend}, more...)...)
}

// freeze makes all of it hang, sentinels included.
func (s store) freeze() {
	for _, r := range append(s.nodes, s.others...) {
		r.Freeze()
	}
}

func (s store) thaw() {
	for _, r := range append(s.nodes, s.others...) {
		r.Thaw()
	}
}

// kill ends every server, so that ports are closed and nobody takes over.
func (s store) kill() {
	for _, r := range s.nodes {
		r.Kill()
	}
}

func (s store) restart() {
	for _, r := range s.nodes {
		r.Restart()
	}
}
