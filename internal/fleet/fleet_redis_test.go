//go:build unix

package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"imapgate/internal/faultproxy"
	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// redisOptions returns the options of a client with short timeouts, as a gateway's.
func redisOptions(addresses ...string) *redis.UniversalOptions {
	return &redis.UniversalOptions{
		Addrs: addresses, Protocol: 2, DisableIdentity: true, DialTimeout: time.Second, ReadTimeout: waitTimeout, WriteTimeout: waitTimeout,
		PoolTimeout: waitTimeout, ContextTimeoutEnabled: true, MaxRetries: 1, DialerRetries: 1,
	}
}

func dialWith(t testing.TB, o *redis.UniversalOptions) redis.UniversalClient {
	t.Helper()
	c := redis.NewUniversalClient(o)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func dial(t testing.TB, addresses ...string) redis.UniversalClient {
	t.Helper()
	return dialWith(t, redisOptions(addresses...))
}

// greeting is the argument of the operation greet, which counts its calls.
type greeting struct {
	Name string `json:"name"`
}

// member is a gateway of a test.
type member struct {
	*Fleet
	calls  atomic.Int64
	states chan AddressState
	stop   func() // ends Run, and waits for it
}

// join starts a gateway that runs until the test ends, and waits until the others see it.
func join(t testing.TB, name string, client redis.UniversalClient) *member {
	t.Helper()
	m := newMember(t, name, client)
	m.run(t)
	testkit.Eventually(t, name+" is announced", func() bool { return client.HGet(t.Context(), m.gatewayKey(m.ID), "name").Val() == name })
	return m
}

func (m *member) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	m.stop = func() { cancel(); wg.Wait() }
	t.Cleanup(m.stop)
}

func newMember(t testing.TB, name string, client redis.UniversalClient) *member {
	m := &member{states: make(chan AddressState, 100)}
	m.Fleet = New(client, Options{
		Prefix: "imapgate:", ID: strings.ToLower(name) + "-id", Name: name, Version: "1", Log: zaptest.NewLogger(t, zaptest.Level(zap.WarnLevel)),
		AnswerTimeout:  5 * time.Second, // a busy machine must not look like a frozen gateway
		Describe:       func() Load { return Load{State: "serving", Sessions: 3} },
		OnAddressState: func(s AddressState) { m.states <- s },
		Operations: []Operation{
			Operate("greet", func(_ context.Context, g greeting, by string) (string, error) {
				m.calls.Add(1)
				if g.Name == "" {
					return "", errors.New("no name")
				}
				return name + " greets " + g.Name + " for " + by, nil
			}),
			Operate("panic", func(context.Context, struct{}, string) (int, error) { panic("in a test") }),
			Operate("large", func(context.Context, struct{}, string) (string, error) { return strings.Repeat("x", maxAnswer), nil }),
			Operate("garble", m.garble),
		},
	})
	return m
}

// garble answers the latest command with anything, before the answer proper.
func (m *member) garble(ctx context.Context, _ struct{}, _ string) (string, error) {
	last, err := m.redis.XRevRangeN(ctx, m.commandsKey(), "+", "-", 1).Result()
	if err != nil || len(last) != 1 {
		return "", fmt.Errorf("%v, %w", last, err)
	}
	id, _ := last[0].Values["id"].(string)
	for _, text := range []string{"", "{", "null", "[]", `{"id":7}`, `{"id":"other","result":1}`, `{"id":"` + m.ID + `"}`, strings.Repeat("x", maxArgs)} {
		for range 5 {
			err = errors.Join(err, m.redis.RPush(ctx, m.answersKey(id), text).Err())
		}
	}
	return "done", err
}

// results returns what the gateways have answered, sorted.
func (r Reply) results() (list []string) {
	for _, a := range r.Answers {
		list = append(list, string(a.Result)+a.Code)
	}
	slices.Sort(list)
	return list
}

// ask is Ask in the name of alice. Its reply must have these results, and these gateways missing.
func (m *member) ask(t testing.TB, op string, args any, results []string, missing ...string) Reply {
	t.Helper()
	reply := testkit.Must(m.Ask(t.Context(), op, args, "alice"))(t)
	if got := reply.results(); !slices.Equal(got, results) || !slices.Equal(reply.Missing, missing) || reply.Asked != len(results)+len(missing) {
		t.Errorf("%s: %d were asked, the results are %.200q, missing are %q (%v); want %q and %q", op, reply.Asked, got, reply.Missing, reply.Err, results, missing)
	}
	return reply
}

func (m *member) expectCalls(t testing.TB, want int64) {
	t.Helper()
	if got := m.calls.Swap(0); got != want {
		t.Errorf("%s has carried out %d commands, want %d", m.Name, got, want)
	}
}

// answersTo returns the answers that are in Redis.
func (m *member) answersTo(t testing.TB, id string) []string {
	t.Helper()
	return m.redis.LRange(t.Context(), m.answersKey(id), 0, -1).Val()
}

// write writes a command to the stream, as any gateway may.
func (m *member) write(t testing.TB, id, op, args string, valid time.Duration) {
	t.Helper()
	testkit.NoError(t, sendScript.Run(t.Context(), m.redis, []string{m.commandsKey()}, valid.Milliseconds(), maxStream, id, op, args, "alice").Err())
}

// awaitAll waits until the gateway has carried out all commands that were written before.
func (m *member) awaitAll(t testing.TB) {
	t.Helper()
	id := newTestID()
	m.write(t, id, "unknown", "{}", time.Minute)
	testkit.Eventually(t, "the last command is answered", func() bool { return len(m.answersTo(t, id)) > 0 })
	testkit.Eventually(t, "no operation runs", func() bool { return len(m.running) == 0 })
}

var stall = faultproxy.Rules{Faults: []faultproxy.Fault{{Action: faultproxy.Stall}}}

func freeze(p *faultproxy.Proxy, rules faultproxy.Rules) {
	p.SetRules(faultproxy.ToTarget, rules)
	p.SetRules(faultproxy.ToClient, rules)
}

const (
	greetingA = `"gw-a greets bob for alice"`
	greetingB = `"gw-b greets bob for alice"`
	greetingC = `"gw-c greets bob for alice"`
)

func TestACommandIsCarriedOutByAllAndAFrozenGatewayIsNamed(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	line := faultproxy.Start(t, r.Address)
	a, b, c := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address)), join(t, "gw-c", dial(t, line.Address()))
	for range 20 {
		start := time.Now()
		reply := a.ask(t, "greet", greeting{"bob"}, []string{greetingA, greetingB, greetingC})
		t.Logf("all three have answered after %v", time.Since(start))
		if reply.Answers[0].Name != "gw-a" || reply.Err != nil || reply.Refused() != nil {
			t.Errorf("%+v", reply)
		}
	}
	a.awaitAll(t) // it has read its own commands too
	for _, m := range []*member{a, b, c} {
		m.expectCalls(t, 20)
	}

	freeze(line, stall)
	start := time.Now()
	b.ask(t, "greet", greeting{"bob"}, []string{greetingA, greetingB}, "gw-c")
	if took := time.Since(start); took < b.AnswerTimeout {
		t.Errorf("gw-c is missing after %v", took)
	}
	freeze(line, faultproxy.Rules{})
	line.ResetConns()
	id := testkit.Must(a.redis.XRevRangeN(t.Context(), a.commandsKey(), "+", "-", 1).Result())(t)[0].Values["id"].(string)
	testkit.Eventually(t, "gw-c has read the command", func() bool { return strings.Contains(fmt.Sprint(a.answersTo(t, id)), codeExpired) })
	c.expectCalls(t, 0) // it was missing, so it must not do late what was reported as not done
	testkit.Eventually(t, "gw-c answers again", func() bool {
		reply := testkit.Must(b.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
		return len(reply.Answers) == 3
	})

	// One that has signed off, or has no heartbeat, is not asked.
	b.stop()
	c.stop()
	dead := newMember(t, "gw-dead", a.redis)
	testkit.NoError(t, dead.heartbeat(t.Context()))
	if all := testkit.Must(a.List(t.Context()))(t); len(all) != 2 {
		t.Errorf("%+v", all)
	}
	r.CLI("PEXPIRE", a.gatewayKey(dead.ID), "0")
	a.ask(t, "greet", greeting{"bob"}, []string{greetingA})
	if n := a.redis.Exists(t.Context(), b.gatewayKey(b.ID), c.gatewayKey(c.ID)).Val(); n != 0 {
		t.Errorf("%d gateways have not signed off", n)
	}
}

func TestWhatAGatewayDoesNotUnderstandIsAnsweredAndNotDone(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	type newer struct {
		Name string `json:"name"`
		Only string `json:"only_this_one"`
	}
	for op, args := range map[string]any{"newer": struct{}{}, "greet": newer{"bob", "x"}} {
		reply := a.ask(t, op, args, []string{codeUnknown, codeUnknown})
		if want := []string{"gateway gw-a, version 1, does not understand this command", "gateway gw-b, version 1, does not understand this command"}; !slices.Equal(reply.Refused(), want) {
			t.Errorf("%q", reply.Refused())
		}
	}
	a.expectCalls(t, 0)
	b.expectCalls(t, 0)
	a.ask(t, "panic", struct{}{}, []string{codeFailed, codeFailed})
	a.ask(t, "greet", greeting{}, []string{codeFailed, codeFailed})
	a.ask(t, "garble", struct{}{}, []string{`"done"`, `"done"`})
	if reply := testkit.Must(a.Ask(t.Context(), "large", struct{}{}, "alice"))(t); len(reply.Answers) != 2 || reply.Answers[1].Error != "the answer is too large" {
		t.Errorf("%.300q", reply.Refused())
	}
	if _, err := a.Ask(t.Context(), "greet", greeting{strings.Repeat("x", maxArgs)}, "alice"); err == nil {
		t.Error("arguments of any size are sent")
	}
}

// What the others have answered in time counts, however long this gateway takes.
func TestASlowGatewayHearsTheOthers(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a := newMember(t, "gw-a", dial(t, r.Address))
	b := newMember(t, "gw-b", dial(t, r.Address))
	a.Operations = append(a.Operations, Operate("slow", func(ctx context.Context, _ struct{}, _ string) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, a.AnswerTimeout)
		defer cancel()
		testkit.Eventually(t, "gw-b has answered", func() bool { return len(r.CLI("KEYS", "imapgate:answers:*")) > 0 })
		<-ctx.Done()
		return 1, nil
	}))
	b.Operations = append(b.Operations, Operate("slow", func(context.Context, struct{}, string) (int, error) { return 2, nil }))
	for _, m := range []*member{a, b} {
		m.run(t)
		testkit.Eventually(t, m.Name+" is announced", func() bool { return m.redis.Exists(t.Context(), m.gatewayKey(m.ID)).Val() == 1 })
	}
	if reply := a.ask(t, "slow", struct{}{}, []string{"1", "2"}); reply.Err != nil {
		t.Error(reply.Err)
	}
}

func TestAnythingMayBeInTheListOfGateways(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	r.CLI("SET", "imapgate:gateway:text", "x")
	r.CLI("HSET", "imapgate:gateway:odd", "name", "gw\x1b[2J"+strings.Repeat("n", 1000), "state", "flying", "sessions", "-7", "logins_per_second", "NaN", "started", "9223372036854775807")
	r.CLI("ZADD", "imapgate:gateways", "9999999999999", "text", "9999999999999", "odd", "9999999999999", strings.Repeat("i", 1000), "9999999999999", "gone")
	all := testkit.Must(a.List(t.Context()))(t)
	if len(all) != 3 || all[0].Name != "gw-a" || all[2].Name != b.Name || all[2].Sessions != 3 {
		t.Fatalf("%+v", all)
	}
	odd := all[1]
	if _, err := odd.Started.MarshalJSON(); err != nil || odd.State != "starting" || odd.Sessions != 0 || odd.LoginsPerSecond != 0 || len(odd.Name) > maxText || strings.Contains(odd.Name, "\x1b") {
		t.Errorf("%+v, %v", odd, err)
	}
}

func TestWhileRedisIsDownOnlyThisGatewayIsAsked(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := join(t, "gw-a", dial(t, r.Address))
	expectAlone := func() {
		t.Helper()
		reply := m.ask(t, "greet", greeting{"bob"}, []string{greetingA})
		if !errors.Is(reply.Err, ErrRedis) || len(reply.Refused()) != 1 || !strings.Contains(reply.Refused()[0], "other gateways could not be asked") {
			t.Errorf("%+v", reply)
		}
		if err := m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "a:1", State: "disabled"}); !errors.Is(err, ErrRedis) || len(m.AddressStates()) != 0 {
			t.Errorf("%v", err)
		}
	}
	r.Freeze()
	expectAlone()
	r.Thaw()
	r.Kill()
	expectAlone()
	m.expectCalls(t, 2)
	r.RestartEmpty()
	testkit.Eventually(t, "the fleet is there again", func() bool {
		all, err := m.List(t.Context())
		n, _ := m.redis.Exists(t.Context(), m.gatewayKey(m.ID)).Result()
		return len(all) == 1 && err == nil && n == 1
	})
}

func TestAFleetWorksInARedisCluster(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedisCluster(t)
	a, b := join(t, "gw-a", dial(t, r.Addresses...)), join(t, "gw-b", dial(t, r.Addresses...))
	if all := testkit.Must(a.List(t.Context()))(t); len(all) != 2 {
		t.Errorf("%+v", all)
	}
	a.ask(t, "greet", greeting{"bob"}, []string{greetingA, greetingB})
	for i := range 20 {
		u := user(t, fmt.Sprint("user", i))
		at, release := a.Claim(t.Context(), "east", u, []string{"e1", "e2"}, nil)
		again, releaseB := b.Claim(t.Context(), "east", u, []string{"e2", "e1"}, nil)
		if at != "e1" || again != "e1" {
			t.Errorf("%v: %s, %s", u, at, again)
		}
		defer release()
		defer releaseB()
	}
	testkit.NoError(t, a.renewPlaces(t.Context()))
	testkit.NoError(t, a.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "e1", State: "disabled"}))
	testkit.NoError(t, b.loadStates(t.Context()))
	if got := <-b.states; got.State != "disabled" {
		t.Errorf("%+v", got)
	}
	r.Failover()
	testkit.Eventually(t, "both answer after a failover", func() bool {
		reply := testkit.Must(b.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
		return len(reply.Answers) == 2
	})
}

func TestAFleetFollowsAFailoverOfSentinel(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedisSentinel(t)
	var members []*member
	for _, name := range []string{"gw-a", "gw-b"} {
		o := redisOptions(r.Addresses...)
		o.MasterName = testbed.SentinelName
		members = append(members, join(t, name, dialWith(t, o)))
	}
	members[0].ask(t, "greet", greeting{"bob"}, []string{greetingA, greetingB})
	r.Failover()
	r.AwaitDemotion()
	testkit.Eventually(t, "both answer after a failover", func() bool {
		reply := testkit.Must(members[0].Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
		return len(reply.Answers) == 2
	})
}

func user(t testing.TB, name string) identity.User {
	t.Helper()
	return testkit.Must(identity.Canonicalize(name, "example.org"))(t)
}

// BenchmarkAsk measures a command to a fleet of three.
func BenchmarkAsk(b *testing.B) {
	r := testbed.StartRedis(b)
	first := join(b, "gw-a", dial(b, r.Address))
	join(b, "gw-b", dial(b, r.Address))
	join(b, "gw-c", dial(b, r.Address))
	for b.Loop() {
		first.ask(b, "greet", greeting{"bob"}, []string{greetingA, greetingB, greetingC})
	}
}
