package tests

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// The documented properties of routing by Redis: a change takes effect within a second, and
// while Redis is down known users log in and no user reaches a wrong backend.
const moveCount = 6

// cluster is two backends with routes in one Redis.
type cluster struct {
	t          *testing.T
	east, west *testbed.Dovecot
	store      redisStore
	name       string // part of the user names
}

// The subtests measure time, so they are not parallel.
func TestRoutesFollowRedis(t *testing.T) {
	ca := testbed.NewCA(t)
	east := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	west := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	for kind, start := range redisStores {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			for i, test := range routingTests {
				t.Run(test.name, func(t *testing.T) {
					test.run(&cluster{t, east, west, s, fmt.Sprint(kind, i)})
				})
			}
		})
	}
}

var routingTests = []struct {
	name string
	run  func(*cluster)
}{
	{"a moved user logs in at the other backend within a second", (*cluster).testMovedUser},
	{"known users log in while Redis is killed", func(c *cluster) { c.testOutage(redisStore.kill, redisStore.restart) }},
	{"known users log in while Redis hangs", func(c *cluster) { c.testOutage(redisStore.pause, redisStore.resume) }},
	{"a gateway restarted while Redis is down knows its users", (*cluster).testRestart},
}

// startGateway starts a gateway in front of both backends.
func (c *cluster) startGateway(snapshot string, ttl time.Duration) *gateway {
	c.t.Helper()
	return startGateway(c.t, c.east.CA, c.backends(""), c.store.conf, fmt.Sprintf("routing: {snapshot: %q, cache: {ttl: %v}}", snapshot, ttl))
}

// backends returns the section of both backends, with more settings of each, which begin
// with a comma.
func (c *cluster) backends(more string) string {
	return backendsConf(map[string]string{
		"east": backendConf(c.east, event.ImplicitTLS) + more, "west": backendConf(c.west, event.ImplicitTLS) + more,
	})
}

// addUser creates a user of this subtest with a route to the east. Each backend has a mailbox
// with the backend's name, by which a client can identify it.
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

// loginBackend logs in and returns the name of the backend, or the refusal.
func loginBackend(t *testing.T, g *gateway, user string) (backend string) {
	t.Helper()
	client := mustDial(t, g.endpoint(event.ImplicitTLS), "")
	defer client.Close() // all responses were read
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
	mover, otherUser := c.addUser("mover"), c.addUser("other")
	c.checkBackend(g, mover, "east")
	c.checkBackend(g, otherUser, "east")
	for i := range moveCount {
		backend := []string{"west", "east"}[i%2]
		c.store.setRoute(c.t, mover, backend)
		c.awaitBackend(g, mover, backend)
		c.checkBackend(g, otherUser, "east")
	}
}

// checkBackend checks that a login reaches this backend.
func (c *cluster) checkBackend(g *gateway, user, backend string) {
	c.t.Helper()
	if where := loginBackend(c.t, g, user); where != backend {
		c.t.Fatalf("%s is at %s; want %s", user, where, backend)
	}
}

// awaitBackend waits until a login reaches this backend.
func (c *cluster) awaitBackend(g *gateway, user, backend string) {
	c.t.Helper()
	testkit.Eventually(c.t, user+" to log in at "+backend, func() bool {
		where := loginBackend(c.t, g, user)
		return where == backend
	})
}

// testOutage stops and starts Redis. Routes are fresh for a second only, so that logins
// during the outage need stale routes.
func (c *cluster) testOutage(stop, start func(redisStore)) {
	g := c.startGateway("", time.Second)
	var known []string
	for i := range 5 {
		known = append(known, c.addUser(fmt.Sprintf("known%d", i)))
		c.checkBackend(g, known[i], "east")
	}
	unknown := c.addUser("unknown")

	stop(c.store)
	c.checkKnownLogins(g, known)
	testkit.Eventually(c.t, "a route older than its ttl to be used", func() bool {
		c.checkBackend(g, known[0], "east")
		return strings.Contains(g.readFile("audit"), `"route":"stale"`)
	})
	c.checkKnownLogins(g, known)
	c.checkUnknownRefused(g, unknown)

	start(c.store)
	c.awaitBackend(g, unknown, "east")
	testkit.Eventually(c.t, "redis-cli to write again", func() bool {
		return c.store.trySetRoute(known[0], "west") == nil
	})
	c.awaitBackend(g, known[0], "west")
}

// checkKnownLogins checks that a hundred logins succeed.
func (c *cluster) checkKnownLogins(g *gateway, known []string) {
	c.t.Helper()
	for i := range 100 {
		if where := loginBackend(c.t, g, known[i%len(known)]); where != "east" {
			c.t.Fatalf("login %d of a known user: %s", i, where)
		}
	}
}

// checkUnknownRefused checks that a user without a cached route gets UNAVAILABLE.
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
	known, unknown := c.addUser("known"), c.addUser("unknown")
	c.checkBackend(g, known, "east")
	c.store.kill()
	g.stop()
	g = c.startGateway(snapshot, time.Second)
	c.checkKnownLogins(g, []string{known})
	testkit.Eventually(c.t, "a login routed by the snapshot to be in the audit log", func() bool {
		return strings.Contains(g.readFile("audit"), `"route":"snapshot"`)
	})
	c.checkUnknownRefused(g, unknown)
	c.store.restart()
	c.awaitBackend(g, unknown, "east")
}
