//go:build unix

package fleet

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// documentedUsers returns the arguments of ACL SETUSER in a page for operators, by user.
func documentedUsers(t *testing.T, page string) map[string][]string {
	t.Helper()
	text := string(testkit.Must(os.ReadFile(page))(t))
	users := make(map[string][]string)
	for _, match := range regexp.MustCompile(`(?m)^    ACL SETUSER ((?:.+\n)(?:      .+\n)*)`).FindAllStringSubmatch(text, -1) {
		args := strings.Fields(match[1])
		users[args[0]] = args
	}
	return users
}

// The users of Redis that docs/operating/fleet-redis.md describes can do what they need, and cannot do
// what only others may.
func TestDocumentedUsersPartRouteWritersFromCommandWriters(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	users := documentedUsers(t, "../../docs/operating/fleet-redis.md")
	connect := func(name string) redis.UniversalClient {
		t.Helper()
		if users[name] == nil {
			t.Fatalf("the page has no user %s", name)
		}
		r.CLI(append([]string{"ACL", "SETUSER"}, users[name]...)...)
		o := redisOptions(r.Address)
		o.Username, o.Password = name, "PASSWORD"
		return dialWith(t, o)
	}
	gateway, routes := connect("imapgate"), connect("routes")

	a, b := join(t, "gw-a", gateway), join(t, "gw-b", gateway)
	a.ask(t, "greet", greeting{"bob"}, []string{greetingA, greetingB})
	at, release := a.Claim(t.Context(), "east", user(t, "bob"), []string{"e1"}, nil)
	testkit.NoError(t, a.renewPlaces(t.Context()))
	if at != "e1" || r.CLI("GET", "imapgate:place:east:bob@example.org") != "e1" {
		t.Errorf("at %q", at)
	}
	release()
	for _, state := range []string{"disabled", ""} {
		testkit.NoError(t, a.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "e1", State: state}))
		testkit.NoError(t, b.loadStates(t.Context()))
	}
	r.CLI("DEL", "imapgate:commands") // makes the reader look for what was lost
	a.awaitAll(t)
	b.stop()
	if n := len(testkit.Must(a.List(t.Context()))(t)); n != 1 {
		t.Errorf("%d gateways", n)
	}

	ctx := t.Context()
	const route = "imapgate:user:bob@example.org"
	testkit.NoError(t, routes.HSet(ctx, route, "backend", "east").Err())
	testkit.NoError(t, gateway.HGetAll(ctx, route).Err())
	testkit.NoError(t, routes.HSet(ctx, "imapgate:default", "backend", "east").Err())
	testkit.NoError(t, routes.Del(ctx, "imapgate:domain:example.org").Err())
	for what, err := range map[string]error{
		"a gateway writes a route":                    gateway.HSet(ctx, route, "backend", "west").Err(),
		"a gateway writes a route in a script":        gateway.Eval(ctx, "return redis.call('HSET', KEYS[1], 'backend', 'west')", []string{route}).Err(),
		"a gateway flushes Redis":                     gateway.FlushAll(ctx).Err(),
		"a route writer writes a command":             routes.XAdd(ctx, &redis.XAddArgs{Stream: a.commandsKey(), Values: []any{"id", "1"}}).Err(),
		"a route writer writes a command in a script": sendScript.Eval(ctx, routes, []string{a.commandsKey()}, 1000, 10, "id", "greet", "{}", "x").Err(),
		"a route writer reads commands":               routes.XRange(ctx, a.commandsKey(), "-", "+").Err(),
		"a route writer removes commands":             routes.Del(ctx, a.commandsKey()).Err(),
		"a route writer answers":                      routes.RPush(ctx, a.answersKey("id"), "{}").Err(),
		"a route writer moves a user":                 claimScript.Eval(ctx, routes, []string{"imapgate:place:east:bob@example.org"}, 1000, "", 1, "evil").Err(),
		"a route writer disables an address":          routes.HSet(ctx, a.statesKey(), "east e1", "disabled").Err(),
		"a route writer invents a gateway":            routes.HSet(ctx, a.gatewayKey("x"), "name", "x").Err(),
	} {
		if err == nil || !strings.HasPrefix(err.Error(), "NOPERM") && !strings.Contains(err.Error(), "ACL failure") && !strings.Contains(err.Error(), "No permissions") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := r.CLI("HGET", route, "backend"); got != "east" {
		t.Errorf("the route is %q", got)
	}
}
