package tests

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imapgate/internal/testbed"
	"imapgate/proxy"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// What an operator is promised of Redis: a change holds within a second, and
// while Redis is away those who are known log in and nobody is sent astray. The
// limits leave room for the login itself on a busy machine.
const (
	moveCount       = 6
	recoveryTimeout = 30 * time.Second
)

// cluster is two backends behind one Redis.
type cluster struct {
	t          *testing.T
	east, west *testbed.Dovecot
	store      redisStore
	name       string // part of the user names
}

// The scenes look at the clock, so they run one after the other for each Redis,
// and beside no other test.
func TestRoutesFollowRedis(t *testing.T) {
	ca := testbed.NewCA(t)
	east := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	west := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	for kind, start := range redisStores {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			for i, promise := range routingTests {
				t.Run(promise.name, func(t *testing.T) {
					promise.keep(&cluster{t, east, west, s, fmt.Sprint(kind, i)})
				})
			}
		})
	}
}

var routingTests = []struct {
	name string
	keep func(*cluster)
}{
	{"a moved user logs in at the other backend within a second", (*cluster).testMovedUser},
	{"known users log in while it is killed", func(c *cluster) { c.testOutage(redisStore.kill, redisStore.restart) }},
	{"known users log in while it hangs", func(c *cluster) { c.testOutage(redisStore.pause, redisStore.resume) }},
	{"a gateway restarted while it is away knows its users", (*cluster).testRestart},
}

// startGateway starts one in front of both backends.
func (c *cluster) startGateway(snapshot string, ttl time.Duration) *gateway {
	c.t.Helper()
	return startGateway(c.t, gatewayOptions{
		ca: c.east.CA, redis: &c.store.config, routing: routing.Config{TTL: ttl, Snapshot: snapshot},
		backends: map[string]upstream.Config{
			"east": upstreamConfig(c.east, upstream.ImplicitTLS), "west": upstreamConfig(c.west, upstream.ImplicitTLS),
		},
	})
}

// addUser is a user of this scene who lives in the east. At each backend there
// is a mailbox named after it, by which a client can tell where it is.
func (c *cluster) addUser(prefix string) string {
	c.t.Helper()
	user := prefix + "." + c.name
	for name, backend := range map[string]*testbed.Dovecot{"east": c.east, "west": c.west} {
		client := mustDial(c.t, directEndpoint(backend)(c.t, user), "")
		for _, command := range []string{"LOGIN " + user + " " + password, "CREATE " + name, "LOGOUT"} {
			if got, err := client.Do(command); err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
				c.t.Fatalf("%s: %v, %v", command, got, err)
			}
		}
	}
	c.store.setRoute(c.t, user, "east")
	return user
}

// loginBackend logs in and says at which backend, or what the answer was.
func loginBackend(t *testing.T, g *gateway, user string) (backend string) {
	t.Helper()
	client := mustDial(t, g.endpoint(proxy.ImplicitTLS), "")
	defer client.Close() // nothing is left to be said
	got, err := client.Do("LOGIN " + user + " " + password)
	if err != nil {
		return err.Error()
	}
	if last := got[len(got)-1].Text; !strings.Contains(last, " OK ") {
		return last
	}
	got, err = client.Do(`LIST "" %`)
	if err != nil {
		return err.Error()
	}
	for _, name := range []string{"east", "west"} {
		if strings.Contains(formatResponses(got), "/ "+name) || strings.Contains(formatResponses(got), `"/" `+name) {
			return name
		}
	}
	return formatResponses(got)
}

func (c *cluster) testMovedUser() {
	g := c.startGateway("", time.Minute)
	mover, otherUser := c.addUser("mover"), c.addUser("neighbour")
	c.checkBackend(g, mover, "east")
	c.checkBackend(g, otherUser, "east")
	for i := range moveCount {
		backend := []string{"west", "east"}[i%2]
		c.store.setRoute(c.t, mover, backend)
		c.awaitBackend(g, mover, backend)
		c.checkBackend(g, otherUser, "east")
	}
}

// checkBackend wants a login to end at this backend.
func (c *cluster) checkBackend(g *gateway, user, backend string) {
	c.t.Helper()
	if where := loginBackend(c.t, g, user); where != backend {
		c.t.Fatalf("%s is at %s; want %s", user, where, backend)
	}
}

// awaitBackend wants that after a while.
func (c *cluster) awaitBackend(g *gateway, user, backend string) {
	c.t.Helper()
	testbed.Eventually(c.t, recoveryTimeout, user+" to log in at "+backend, func() bool {
		where := loginBackend(c.t, g, user)
		return where == backend
	})
}

// testOutage takes Redis away and gives it back. The routes are fresh for a second
// only, so that what is told meanwhile is not just fresh.
func (c *cluster) testOutage(stop, start func(redisStore)) {
	g := c.startGateway("", time.Second)
	var known []string
	for i := range 5 {
		known = append(known, c.addUser(fmt.Sprintf("known%d", i)))
		c.checkBackend(g, known[i], "east")
	}
	unknown := c.addUser("stranger")

	stop(c.store)
	c.checkKnownLogins(g, known)
	testbed.Eventually(c.t, recoveryTimeout, "an answer older than its ttl to be used", func() bool {
		c.checkBackend(g, known[0], "east")
		return strings.Contains(g.readFile("audit"), `"route":"stale"`)
	})
	c.checkKnownLogins(g, known)
	c.checkUnknownRefused(g, unknown)

	start(c.store)
	c.awaitBackend(g, unknown, "east")
	testbed.Eventually(c.t, recoveryTimeout, "redis-cli to write again", func() bool {
		return c.store.trySetRoute(known[0], "west") == nil
	})
	c.awaitBackend(g, known[0], "west")
}

// checkKnownLogins wants a hundred logins to go well.
func (c *cluster) checkKnownLogins(g *gateway, known []string) {
	c.t.Helper()
	for i := range 100 {
		if where := loginBackend(c.t, g, known[i%len(known)]); where != "east" {
			c.t.Fatalf("login %d of a known user: %s", i, where)
		}
	}
}

// checkUnknownRefused wants a user whose route nobody knows to be told so.
func (c *cluster) checkUnknownRefused(g *gateway, unknown string) {
	c.t.Helper()
	for range 3 {
		where := loginBackend(c.t, g, unknown)
		if !strings.Contains(where, "NO [UNAVAILABLE] ") {
			c.t.Fatalf("a user without a known route got %s", where)
		}
	}
}

func (c *cluster) testRestart() {
	snapshot := filepath.Join(c.t.TempDir(), "routes")
	g := c.startGateway(snapshot, time.Second)
	known, unknown := c.addUser("known"), c.addUser("stranger")
	c.checkBackend(g, known, "east")
	c.store.kill()
	g.stop()
	g = c.startGateway(snapshot, time.Second)
	c.checkKnownLogins(g, []string{known})
	testbed.Eventually(c.t, recoveryTimeout, "a login routed by the snapshot to be on record", func() bool {
		return strings.Contains(g.readFile("audit"), `"route":"snapshot"`)
	})
	c.checkUnknownRefused(g, unknown)
	c.store.restart()
	c.awaitBackend(g, unknown, "east")
}
