package tests

import (
	"testing"

	"imapgate/internal/testbed"
	"imapgate/routing"
)

// redisStore is a Redis server, sentinel set-up or cluster.
type redisStore struct {
	config routing.RedisConfig
	cli    func(args ...string) error
	nodes  []*testbed.Redis // servers with keys
	others []*testbed.Redis // sentinels
}

// redisStores start one of each kind.
var redisStores = map[string]func(testing.TB) redisStore{
	"single": func(t testing.TB) redisStore {
		r := testbed.StartRedis(t)
		return redisStore{
			config: routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: []string{r.Address}}},
			cli:    func(args ...string) error { return outcomeOf(r.TryCLI(args...)) },
			nodes:  []*testbed.Redis{r},
		}
	},
	"sentinel": func(t testing.TB) redisStore {
		r := testbed.StartRedisSentinel(t)
		return redisStore{
			config: routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: r.Addresses, SentinelMaster: testbed.SentinelName}},
			cli:    func(args ...string) error { return outcomeOf(r.Primary().TryCLI(args...)) },
			nodes:  r.Servers(), others: r.Sentinels(),
		}
	},
	"cluster": func(t testing.TB) redisStore {
		r := testbed.StartRedisCluster(t)
		return redisStore{
			config: routing.RedisConfig{RedisSettings: routing.RedisSettings{Addresses: r.Addresses, Cluster: true}},
			cli:    func(args ...string) error { return outcomeOf(r.Nodes[1].TryCLI(append([]string{"-c"}, args...)...)) },
			nodes:  r.Nodes,
		}
	},
}

// outcomeOf returns the error of a command.
func outcomeOf(_ string, err error) error { return err }

// setRoute sets a user's route by redis-cli; more are further fields and values.
func (s redisStore) setRoute(t testing.TB, user, backend string, more ...string) {
	t.Helper()
	if err := s.trySetRoute(user, backend, more...); err != nil {
		t.Fatal(err)
	}
}

// trySetRoute is setRoute for a Redis that may be down.
func (s redisStore) trySetRoute(user, backend string, more ...string) error {
	return s.cli(append([]string{"HSET", routing.DefaultPrefix + "user:" + user, "backend", backend}, more...)...)
}

// pause makes all servers hang, sentinels included.
func (s redisStore) pause() {
	for _, r := range append(s.nodes, s.others...) {
		r.Freeze()
	}
}

func (s redisStore) resume() {
	for _, r := range append(s.nodes, s.others...) {
		r.Thaw()
	}
}

// kill ends every server, so that all ports are closed and no failover happens.
func (s redisStore) kill() {
	for _, r := range s.nodes {
		r.Kill()
	}
}

func (s redisStore) restart() {
	for _, r := range s.nodes {
		r.Restart()
	}
}
