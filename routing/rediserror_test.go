package routing

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"

	"github.com/redis/go-redis/v9"
)

// lookupError returns the error of a lookup in a Redis.
func lookupError(t testing.TB, c RedisConfig) error {
	t.Helper()
	r := newRouter(t, dialRedis(t, c))
	ctx, cancel := context.WithTimeout(t.Context(), testbed.Timeout)
	defer cancel()
	_, err := r.Record(ctx, ForUser(user(t, "alice")))
	return err
}

// checkError fails unless an error contains want once, in one line.
func checkError(t testing.TB, name string, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "unreachable") || strings.Count(err.Error(), want) > 1 ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v, want %q", name, err, want)
	}
	if errors.Is(err, redis.Nil) {
		t.Errorf("%s: %v is taken for a missing record", name, err)
	}
}

// awaitInvalidationError waits until the invalidation status has the error want.
func awaitInvalidationError(t testing.TB, name string, c RedisConfig, want string) {
	t.Helper()
	r := newRouter(t, dialRedis(t, c))
	startRouter(t, r)
	testkit.Eventually(t, name+" to be reported as: "+want, func() bool {
		return strings.Contains(r.invalidator.status().Error, want)
	})
}

// go-redis returns the error of a refused connection for the pipeline only, and each command
// looks successful.
func TestCommandsOfARefusedConnectionFail(t *testing.T) {
	s := testbed.StartRedis(t, "--requirepass", "pw")
	for name, c := range map[string]RedisConfig{
		"a wrong password": {RedisSettings: RedisSettings{Addresses: []string{s.Address}, Password: identity.NewSecret("x")}},
		"no such database": {RedisSettings: RedisSettings{Addresses: []string{s.Address}, Password: identity.NewSecret("pw"), Database: 99}},
		"no password":      {RedisSettings: RedisSettings{Addresses: []string{s.Address}}},
	} {
		client := dialRedis(t, c)
		for kind, pipe := range map[string]redis.Pipeliner{"pipeline": client.Pipeline(), "transaction": client.TxPipeline()} {
			cmds := []redis.Cmder{pipe.XAdd(t.Context(), &redis.XAddArgs{Stream: "s", Values: []string{"a", "b"}}), pipe.HGetAll(t.Context(), "h")}
			if _, err := pipe.Exec(t.Context()); err == nil {
				t.Errorf("%s: the %s has no error", name, kind)
			}
			for _, cmd := range cmds {
				if cmd.Err() == nil {
					t.Errorf("%s: %s in a %s has no error", name, cmd.Name(), kind)
				}
			}
		}
	}
}

func TestErrorsOfRedisAreExplained(t *testing.T) {
	ca := testbed.NewCA(t)
	plain, secured := testbed.StartRedisTLS(t, ca)
	locked := testbed.StartRedis(t, "--requirepass", "right", "--user", "weak", "on", ">pw", "~other:*", "+get")
	pw := identity.NewSecret
	for name, c := range map[string]struct {
		cfg      RedisConfig
		want     string
		inStatus bool // invalidation connections report it, too
	}{
		"no password":         {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{locked.Address}}}, "Redis requires a password: set redis.password_file", true},
		"a name alone":        {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{locked.Address}, Username: "weak"}}, "redis.username has none: set redis.password_file", true},
		"a wrong password":    {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{locked.Address}, Password: pw("x")}}, "Redis refuses the user name or the password", true},
		"a right is missing":  {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{locked.Address}, Username: "weak", Password: pw("pw")}}, "the ACL user of Redis lacks a permission: docs/operating/redis.md", true},
		"no such database":    {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{plain.Address}, Database: 16}}, "Redis has no such database: redis.database is less than", false},
		"plain to a TLS port": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{secured}}}, "if the port is one for TLS, set redis.tls: true", true},
		"TLS to a plain port": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{plain.Address}}, TLSConfig: ca.ClientTLSFunc("localhost")}, "if the port is one without, leave out redis.tls", true},
		"no cluster":          {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{plain.Address}, Cluster: true}}, "this Redis is not a cluster node: leave out redis.cluster", true},
		"a cluster without a password": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{locked.Address}, Cluster: true}},
			"Redis requires a password: set redis.password_file", true},
		"a cluster at a TLS port": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{secured}, Cluster: true}}, "if the port is one for TLS, set redis.tls: true", true},
		"TLS to a plain cluster": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{plain.Address}, Cluster: true}, TLSConfig: ca.ClientTLSFunc("localhost")},
			"if the port is one without, leave out redis.tls", false},
		"no sentinel": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{plain.Address}, SentinelMaster: "routes"}}, "redis.addresses names no sentinels", true},
		"plain to sentinels' TLS port": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{secured}, SentinelMaster: "routes"}},
			"the sentinels close the connection at the first command", true},
		"TLS to sentinels' plain port": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{plain.Address}, SentinelMaster: "routes"}, TLSConfig: ca.ClientTLSFunc("localhost")},
			"the sentinels do not answer with TLS", true},
		"no listener": {RedisConfig{RedisSettings: RedisSettings{Addresses: []string{"127.0.0.1:1"}, SentinelMaster: "routes"}}, "no sentinel can be reached: dial tcp", true},
	} {
		checkError(t, name, lookupError(t, c.cfg), c.want)
		if c.inStatus {
			awaitInvalidationError(t, name, c.cfg, c.want)
		}
	}
}

func TestRefusedWritesAreExplained(t *testing.T) {
	primary := testbed.StartRedis(t)
	rdb := dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{primary.Address}}})
	change := func() error { return rdb.HSet(t.Context(), "imapgate:user:alice", "backend", "east").Err() }
	primary.CLI("config", "set", "min-replicas-to-write", "1")
	checkError(t, "too few replicas", change(), "it has too few replicas")
	primary.CLI("config", "set", "min-replicas-to-write", "0")
	primary.CLI("config", "set", "maxmemory", "1")
	checkError(t, "no memory", change(), "its memory is full (its setting maxmemory)")
	primary.CLI("config", "set", "maxmemory", "0")
	host, port, _ := strings.Cut(primary.Address, ":")
	primary.CLI("replicaof", host, port) // of itself: read-only without a primary
	checkError(t, "a replica", change(), "this Redis is a replica and accepts no writes")
	primary.CLI("config", "set", "replica-serve-stale-data", "no")
	checkError(t, "a lost replica", rdb.HGetAll(t.Context(), "imapgate:user:alice").Err(), "a replica that has lost its primary")
}

func TestAClusterNodeIsRecognized(t *testing.T) {
	c := testbed.StartRedisCluster(t)
	var moved int
	for _, address := range c.Addresses[:3] {
		if err := lookupError(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}}); err != nil {
			checkError(t, "a node", err, "this Redis is a node of a cluster: set redis.cluster: true")
			moved++
		}
	}
	if moved != 2 {
		t.Errorf("%d nodes reply that the record is elsewhere", moved)
	}
	checkError(t, "a database", lookupError(t, RedisConfig{RedisSettings: RedisSettings{Addresses: c.Addresses[:1], Database: 1}}), "which has database 0 only: set redis.cluster: true")
}

func TestSentinelsHaveAUserAndPasswordOfTheirOwn(t *testing.T) {
	s := testbed.StartRedisSentinel(t)
	primary := s.Primary()
	for _, sentinel := range s.Sentinels() {
		sentinel.CLI("acl", "setuser", "gate", "on", ">sp", "resetchannels", "&*", "-@all", "+auth", "+hello",
			"+sentinel|get-master-addr-by-name", "+sentinel|sentinels", "+subscribe")
		sentinel.CLI("acl", "setuser", "weak", "on", ">sp", "-@all", "+auth", "+hello")
	}
	primary.CLI("acl", "setuser", "gate", "on", ">server", "~imapgate:*", "-@all", "+hgetall", "+echo", "+ping", "+hello", "+auth", "+client|tracking", "+select")
	primary.CLI("acl", "setuser", "default", "+@all")
	good := RedisConfig{
		RedisSettings: RedisSettings{Addresses: s.Addresses, SentinelMaster: testbed.SentinelName, SentinelUsername: "gate", SentinelPassword: identity.NewSecret("sp"), Username: "gate", Password: identity.NewSecret("server"), Database: 3},
	}
	r := newRouter(t, dialRedis(t, good))
	startAndAwaitUp(t, r)
	cli := func(args ...string) string { return primary.CLI(append([]string{"-n", "3"}, args...)...) }
	checkMoves(t, r, cli)
	for _, sentinel := range s.Sentinels() {
		testkit.Eventually(t, "a client to subscribe to failovers", func() bool {
			return sentinel.CLI("acl", "log") == ""
		})
	}
	for _, sentinel := range s.Sentinels() {
		sentinel.CLI("acl", "setuser", "default", "resetpass", ">other")
	}
	for name, c := range map[string]struct {
		change func(*RedisConfig)
		want   string
	}{
		"another name":       {func(c *RedisConfig) { c.SentinelMaster = "mymaster" }, "the sentinels know no master of this name: redis.sentinel_master is"},
		"no password":        {func(c *RedisConfig) { c.SentinelUsername, c.SentinelPassword = "", identity.Secret{} }, "the sentinels require a password: set redis.sentinel_password_file"},
		"a wrong password":   {func(c *RedisConfig) { c.SentinelPassword = identity.NewSecret("x") }, "the sentinels refuse the user name or the password"},
		"a right is missing": {func(c *RedisConfig) { c.SentinelUsername = "weak" }, "the ACL user of the sentinels lacks a permission"},
		"the server's":       {func(c *RedisConfig) { c.Password = identity.NewSecret("x") }, "Redis refuses the user name or the password"},
		"the database":       {func(c *RedisConfig) { c.Database = 99 }, "Redis has no such database"},
	} {
		changed := good
		c.change(&changed)
		checkError(t, name, lookupError(t, changed), c.want)
		if name != "the database" { // changes of all databases are announced
			awaitInvalidationError(t, name, changed, c.want)
		}
	}
}

func TestALoadingServerIsExplained(t *testing.T) {
	for text, want := range map[string]string{
		"LOADING Redis is loading the dataset in memory": "it answers when that is done",
		"MISCONF Redis is configured to save RDB":        "it cannot save to its disk",
	} {
		err := new(errorExplainer).explain(redisError(text))
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v", err)
		}
		if again := new(errorExplainer).explain(err); again != err {
			t.Errorf("explained twice: %v", again)
		}
	}
	moved := redisError("MOVED 1 127.0.0.1:1")
	if got := (&errorExplainer{cluster: true}).explain(moved); got != error(moved) {
		t.Errorf("within a cluster: %v", got)
	}
	plain := errors.New("another")
	if got := new(errorExplainer).explain(plain); got != plain || new(errorExplainer).explain(nil) != nil {
		t.Errorf("%v", got)
	}
}

func TestADatabaseOfItsOwnHoldsTheRoutes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s := testbed.StartRedis(t, "--unixsocket", socket)
	for name, address := range map[string]string{"TCP": s.Address, "socket": "unix://" + socket} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}, Database: 5}}))
			other := newRouter(t, dialRedis(t, RedisConfig{RedisSettings: RedisSettings{Addresses: []string{address}}}))
			startAndAwaitUp(t, r)
			startAndAwaitUp(t, other)
			checkMoves(t, r, func(args ...string) string { return s.CLI(append([]string{"-n", "5"}, args...)...) })

			// Redis announces changes of all databases, with the key alone. A gateway with
			// another database queries its own again.
			s.CLI("hset", "imapgate:user:alice@example.org", "backend", "west")
			awaitBackend(t, other, user(t, "alice@example.org"), "west")
			s.CLI("flushdb")
			s.CLI("hset", "imapgate:user:alice@example.org", "backend", "west")
			s.CLI("del", "imapgate:user:alice@example.org")
			for range 20 {
				if got, err := r.Lookup(t.Context(), user(t, "alice@example.org")); err != nil || got.Backend != "east" {
					t.Fatalf("another database's changes: %+v, %v", got, err)
				}
			}
			testkit.Eventually(t, "the route to be cached again", func() bool {
				got, err := r.Lookup(t.Context(), user(t, "alice@example.org"))
				return err == nil && got.Origin == event.OriginCache && got.Age < time.Minute
			})
		})
	}
}
