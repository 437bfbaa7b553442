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
	moves    = 6
	recovery = 30 * time.Second
)

// scene is two backends behind one Redis.
type scene struct {
	t          *testing.T
	east, west *testbed.Dovecot
	s          store
	name       string // part of the user names
}

// The scenes look at the clock, so they run one after the other for each Redis,
// and beside no other test.
func TestRoutesFollowRedis(t *testing.T) {
	ca := testbed.NewCA(t)
	east := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	west := testbed.StartDovecot(t, testbed.DovecotConfig{Password: password, CA: ca})
	for kind, start := range stores {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := start(t)
			for i, promise := range scenes {
				t.Run(promise.name, func(t *testing.T) {
					promise.keep(&scene{t, east, west, s, fmt.Sprint(kind, i)})
				})
			}
		})
	}
}

var scenes = []struct {
	name string
	keep func(*scene)
}{
	{"a moved user logs in at the other backend within a second", (*scene).moved},
	{"known users log in while it is killed", func(c *scene) { c.away(store.kill, store.restart) }},
	{"known users log in while it hangs", func(c *scene) { c.away(store.freeze, store.thaw) }},
	{"a gateway restarted while it is away knows its users", (*scene).restarted},
}

// gateway starts one in front of both backends.
func (c *scene) gateway(snapshot string, ttl time.Duration) *running {
	c.t.Helper()
	return startGateway(c.t, options{
		ca: c.east.CA, redis: &c.s.config, routing: routing.Config{TTL: ttl, Snapshot: snapshot},
		backends: map[string]upstream.Config{
			"east": to(c.east, upstream.ImplicitTLS), "west": to(c.west, upstream.ImplicitTLS),
		},
	})
}

// person is a user of this scene who lives in the east. At each backend there
// is a mailbox named after it, by which a client can tell where it is.
func (c *scene) person(who string) string {
	c.t.Helper()
	user := who + "." + c.name
	for name, backend := range map[string]*testbed.Dovecot{"east": c.east, "west": c.west} {
		client := enter(c.t, directly(backend)(c.t, user), "")
		for _, command := range []string{"LOGIN " + user + " " + password, "CREATE " + name, "LOGOUT"} {
			if got, err := client.Do(command); err != nil || !strings.Contains(got[len(got)-1].Text, " OK ") {
				c.t.Fatalf("%s: %v, %v", command, got, err)
			}
		}
	}
	c.s.route(c.t, user, "east")
	return user
}

// try logs in and says at which backend, or what the answer was.
func try(t *testing.T, g *running, user string) (where string) {
	t.Helper()
	client := enter(t, g.at(proxy.ImplicitTLS), "")
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
		if strings.Contains(shown(got), "/ "+name) || strings.Contains(shown(got), `"/" `+name) {
			return name
		}
	}
	return shown(got)
}

func (c *scene) moved() {
	g := c.gateway("", time.Minute)
	mover, neighbour := c.person("mover"), c.person("neighbour")
	c.wantAt(g, mover, "east")
	c.wantAt(g, neighbour, "east")
	for i := range moves {
		home := []string{"west", "east"}[i%2]
		c.s.route(c.t, mover, home)
		c.eventuallyAt(g, mover, home)
		c.wantAt(g, neighbour, "east")
	}
}

// wantAt wants a login to end at this backend.
func (c *scene) wantAt(g *running, user, home string) {
	c.t.Helper()
	if where := try(c.t, g, user); where != home {
		c.t.Fatalf("%s is at %s; want %s", user, where, home)
	}
}

// eventuallyAt wants that after a while.
func (c *scene) eventuallyAt(g *running, user, home string) {
	c.t.Helper()
	testbed.Within(c.t, recovery, user+" to log in at "+home, func() bool {
		where := try(c.t, g, user)
		return where == home
	})
}

// away takes Redis away and gives it back. The routes are fresh for a second
// only, so that what is told meanwhile is not just fresh.
func (c *scene) away(take, giveBack func(store)) {
	g := c.gateway("", time.Second)
	var known []string
	for i := range 5 {
		known = append(known, c.person(fmt.Sprintf("known%d", i)))
		c.wantAt(g, known[i], "east")
	}
	stranger := c.person("stranger")

	take(c.s)
	c.knownLogIn(g, known)
	testbed.Within(c.t, recovery, "an answer older than its ttl to be used", func() bool {
		c.wantAt(g, known[0], "east")
		return strings.Contains(g.read("audit"), `"route":"stale"`)
	})
	c.knownLogIn(g, known)
	c.strangerWaits(g, stranger)

	giveBack(c.s)
	c.eventuallyAt(g, stranger, "east")
	testbed.Within(c.t, recovery, "redis-cli to write again", func() bool {
		return c.s.try(known[0], "west") == nil
	})
	c.eventuallyAt(g, known[0], "west")
}

// knownLogIn wants a hundred logins to go well.
func (c *scene) knownLogIn(g *running, known []string) {
	c.t.Helper()
	for i := range 100 {
		if where := try(c.t, g, known[i%len(known)]); where != "east" {
			c.t.Fatalf("login %d of a known user: %s", i, where)
		}
	}
}

// strangerWaits wants a user whose route nobody knows to be told so.
func (c *scene) strangerWaits(g *running, stranger string) {
	c.t.Helper()
	for range 3 {
		where := try(c.t, g, stranger)
		if !strings.Contains(where, "NO [UNAVAILABLE] ") {
			c.t.Fatalf("a user without a known route got %s", where)
		}
	}
}

func (c *scene) restarted() {
	snapshot := filepath.Join(c.t.TempDir(), "routes")
	g := c.gateway(snapshot, time.Second)
	known, stranger := c.person("known"), c.person("stranger")
	c.wantAt(g, known, "east")
	c.s.kill()
	g.stop()
	g = c.gateway(snapshot, time.Second)
	c.knownLogIn(g, []string{known})
	testbed.Within(c.t, recovery, "a login routed by the snapshot to be on record", func() bool {
		return strings.Contains(g.read("audit"), `"route":"snapshot"`)
	})
	c.strangerWaits(g, stranger)
	c.s.restart()
	c.eventuallyAt(g, stranger, "east")
}
