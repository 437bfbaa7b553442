package tests

import (
	"testing"

	"imapgate/internal/testbed"
	"imapgate/routing"
)

// store is a Redis of one of the three kinds, as an operator sees it.
type store struct {
	config routing.RedisConfig
	cli    func(args ...string) error
	nodes  []*testbed.Redis // everything that keeps records
	others []*testbed.Redis // sentinels
}

// stores start one of each kind.
var stores = map[string]func(testing.TB) store{
	"single": func(t testing.TB) store {
		r := testbed.StartRedis(t)
		return store{
			config: routing.RedisConfig{Addresses: []string{r.Address}},
			cli:    func(args ...string) error { return ran(r.Try(args...)) },
			nodes:  []*testbed.Redis{r},
		}
	},
	"sentinel": func(t testing.TB) store {
		r := testbed.StartRedisSentinel(t)
		return store{
			config: routing.RedisConfig{Addresses: r.Addresses, SentinelMaster: testbed.SentinelName},
			cli:    func(args ...string) error { return ran(r.Primary().Try(args...)) },
			nodes:  r.Servers(), others: r.Sentinels(),
		}
	},
	"cluster": func(t testing.TB) store {
		r := testbed.StartRedisCluster(t)
		return store{
			config: routing.RedisConfig{Addresses: r.Addresses, Cluster: true},
			cli:    func(args ...string) error { return ran(r.Nodes[1].Try(append([]string{"-c"}, args...)...)) },
			nodes:  r.Nodes,
		}
	},
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
