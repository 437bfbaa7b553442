package tests

import (
	"testing"

	"imapgate/internal/testbed"
	"imapgate/routing"
)

// redisStore is a Redis of one of the three kinds, as an operator sees it.
type redisStore struct {
	config routing.RedisConfig
	cli    func(args ...string) error
	nodes  []*testbed.Redis // everything that keeps records
	others []*testbed.Redis // sentinels
}

// redisStores start one of each kind.
var redisStores = map[string]func(testing.TB) redisStore{
	"single": func(t testing.TB) redisStore {
		r := testbed.StartRedis(t)
		return redisStore{
			config: routing.RedisConfig{Addresses: []string{r.Address}},
			cli:    func(args ...string) error { return outcomeOf(r.TryCLI(args...)) },
			nodes:  []*testbed.Redis{r},
		}
	},
	"sentinel": func(t testing.TB) redisStore {
		r := testbed.StartRedisSentinel(t)
		return redisStore{
			config: routing.RedisConfig{Addresses: r.Addresses, SentinelMaster: testbed.SentinelName},
			cli:    func(args ...string) error { return outcomeOf(r.Primary().TryCLI(args...)) },
			nodes:  r.Servers(), others: r.Sentinels(),
		}
	},
	"cluster": func(t testing.TB) redisStore {
		r := testbed.StartRedisCluster(t)
		return redisStore{
			config: routing.RedisConfig{Addresses: r.Addresses, Cluster: true},
			cli:    func(args ...string) error { return outcomeOf(r.Nodes[1].TryCLI(append([]string{"-c"}, args...)...)) },
			nodes:  r.Nodes,
		}
	},
}

// outcomeOf keeps of a command whether it went well.
func outcomeOf(_ string, err error) error { return err }

// setRoute says by redis-cli where a user lives; more are further fields and values.
func (s redisStore) setRoute(t testing.TB, user, backend string, more ...string) {
	t.Helper()
	if err := s.trySetRoute(user, backend, more...); err != nil {
		t.Fatal(err)
	}
}

// trySetRoute is route while Redis may be away.
func (s redisStore) trySetRoute(user, backend string, more ...string) error {
	return s.cli(append([]string{"HSET", routing.DefaultPrefix + "user:" + user, "backend", backend}, more...)...)
}

// pause makes all of it hang, sentinels included.
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

// kill ends every server, so that ports are closed and nobody takes over.
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
