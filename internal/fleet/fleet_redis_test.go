//go:build unix

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap/zaptest"

	"imapgate/internal/identity"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

// dial returns a client with short timeouts, as a gateway's.
func dial(t testing.TB, addresses ...string) redis.UniversalClient {
	t.Helper()
	c := redis.NewUniversalClient(&redis.UniversalOptions{
		Addrs: addresses, Protocol: 2, DisableIdentity: true, DialTimeout: time.Second, ReadTimeout: claimTimeout, WriteTimeout: claimTimeout,
		ContextTimeoutEnabled: true, MaxRetries: -1,
	})
	t.Cleanup(func() { _ = c.Close() })
	return c
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
}

// join starts a gateway that runs until the test ends.
func join(t testing.TB, name string, client redis.UniversalClient) *member {
	t.Helper()
	m := newMember(t, name, client)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = m.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	if client != nil {
		testkit.Eventually(t, name+" is in the list", func() bool {
			all, err := m.List(ctx)
			n, _ := client.Exists(ctx, m.gatewayKey(m.ID)).Result()
			return err == nil && len(all) > 0 && n == 1
		})
	}
	return m
}

func newMember(t testing.TB, name string, client redis.UniversalClient) *member {
	m := &member{states: make(chan AddressState, 100)}
	m.Fleet = New(client, Options{
		Prefix: "imapgate:", ID: newID()[:8], Name: name, Version: "1", Log: zaptest.NewLogger(t),
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
		},
	})
	return m
}

func (r Reply) results() (list []string) {
	for _, a := range r.Answers {
		list = append(list, string(a.Result)+a.Code)
	}
	slices.Sort(list)
	return list
}

func TestACommandIsCarriedOutByAllAndMissingOnesAreNamed(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	reply := testkit.Must(a.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
	if want := []string{`"gw-a greets bob for alice"`, `"gw-b greets bob for alice"`}; !slices.Equal(reply.results(), want) || reply.Asked != 2 || len(reply.Missing) != 0 {
		t.Errorf("%+v", reply)
	}
	// A gateway that is frozen has a heartbeat and does not answer.
	frozen := newMember(t, "gw-c", dial(t, r.Address))
	testkit.NoError(t, frozen.heartbeat(t.Context()))
	start := time.Now()
	reply = testkit.Must(b.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
	if reply.Asked != 3 || len(reply.Answers) != 2 || !slices.Equal(reply.Missing, []string{"gw-c"}) || time.Since(start) < AnswerTimeout {
		t.Errorf("%+v after %v", reply, time.Since(start))
	}
	frozen.signOff(t.Context())
	if all, err := a.List(t.Context()); len(all) != 2 || err != nil || all[0].Name != "gw-a" || all[1].Sessions != 3 {
		t.Errorf("%+v, %v", all, err)
	}
	for op, want := range map[string]string{"panic": codeFailed, "newer": codeUnknown} {
		reply = testkit.Must(a.Ask(t.Context(), op, struct{}{}, "alice"))(t)
		if !slices.Equal(reply.results(), []string{want, want}) || len(reply.Refused()) != 2 {
			t.Errorf("%s: %+v", op, reply)
		}
	}
	type newer struct {
		Name string `json:"name"`
		Only string `json:"only_this_one"`
	}
	if reply = testkit.Must(a.Ask(t.Context(), "greet", newer{"bob", "x"}, "alice"))(t); !slices.Equal(reply.results(), []string{codeUnknown, codeUnknown}) {
		t.Errorf("an argument that restricts the command is ignored: %+v", reply)
	}
}

func TestACommandIsCarriedOutOnceAndInTime(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	client := dial(t, r.Address)
	m := join(t, "gw-a", client)
	testkit.Eventually(t, "the reader has started", func() bool { // it answers what comes after its start
		id := newID()
		testkit.NoError(t, m.send(t.Context(), command{ID: id, Op: "greet", Args: json.RawMessage(`{"name":"x"}`), Deadline: time.Now().Add(time.Minute)}))
		return client.LLen(t.Context(), m.answersKey(id)).Val() == 1
	})
	before := m.calls.Load()
	send := func(c command) []string {
		t.Helper()
		testkit.NoError(t, m.send(t.Context(), c))
		testkit.NoError(t, m.send(t.Context(), c))
		last := command{ID: newID(), Op: "greet", Args: json.RawMessage(`{"name":"last"}`), Deadline: time.Now().Add(time.Minute)}
		testkit.NoError(t, m.send(t.Context(), last))
		testkit.Eventually(t, "the last command is answered", func() bool { return client.LLen(t.Context(), m.answersKey(last.ID)).Val() == 1 })
		testkit.Eventually(t, "the command is answered", func() bool { return client.LLen(t.Context(), m.answersKey(c.ID)).Val() >= 1 })
		return client.LRange(t.Context(), m.answersKey(c.ID), 0, -1).Val()
	}
	if answers := send(command{ID: newID(), Op: "greet", Args: json.RawMessage(`{"name":"bob"}`), Deadline: time.Now().Add(time.Minute)}); len(answers) != 1 || m.calls.Load() != before+2 {
		t.Errorf("sent twice: %q, %d calls", answers, m.calls.Load()-before)
	}
	before = m.calls.Load()
	if answers := send(command{ID: newID(), Op: "greet", Args: json.RawMessage(`{"name":"bob"}`), Deadline: time.Now().Add(-time.Second)}); len(answers) != 1 || !strings.Contains(answers[0], codeExpired) || m.calls.Load() != before+1 {
		t.Errorf("expired: %q, %d calls", answers, m.calls.Load()-before)
	}
	// Anything may be in the stream.
	before = m.calls.Load()
	for _, values := range [][]any{{"x", "y"}, {"id", "{a}", "op", "greet", "args", `{"name":"x"}`, "deadline", "9999999999999"}, {"id", strings.Repeat("i", 300), "op", "greet"}, {"id", "", "deadline", "soon"}} {
		testkit.NoError(t, client.XAdd(t.Context(), &redis.XAddArgs{Stream: m.commandsKey(), Values: values}).Err())
	}
	if answers := send(command{ID: newID(), Op: "greet", Args: json.RawMessage(`{"name":`), Deadline: time.Now().Add(time.Minute)}); len(answers) != 1 || !strings.Contains(answers[0], codeUnknown) || m.calls.Load() != before+1 {
		t.Errorf("malformed: %q, %d calls", answers, m.calls.Load()-before)
	}
}

// A gateway whose connection breaks carries out what was ordered meanwhile.
func TestABrokenConnectionLosesNoCommand(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	client := dial(t, r.Address)
	m := join(t, "gw-a", client)
	send := func() string {
		id := newID()
		testkit.NoError(t, m.send(t.Context(), command{ID: id, Op: "greet", Args: json.RawMessage(`{"name":"x"}`), Deadline: time.Now().Add(time.Minute)}))
		return id
	}
	testkit.Eventually(t, "the reader has started", func() bool { return client.LLen(t.Context(), m.answersKey(send())).Val() == 1 })
	for range 20 {
		r.CLI("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
		var id string
		testkit.Eventually(t, "a command is sent", func() bool {
			id = newID()
			return m.send(t.Context(), command{ID: id, Op: "greet", Args: json.RawMessage(`{"name":"x"}`), Deadline: time.Now().Add(time.Minute)}) == nil
		})
		testkit.Eventually(t, "it is answered", func() bool { return client.LLen(t.Context(), m.answersKey(id)).Val() == 1 })
	}
}

func TestWhileRedisIsDownOnlyThisGatewayIsAsked(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := join(t, "gw-a", dial(t, r.Address))
	r.Kill()
	reply := testkit.Must(m.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
	if len(reply.Answers) != 1 || !errors.Is(reply.Err, ErrRedis) || len(reply.Refused()) != 1 {
		t.Errorf("%+v", reply)
	}
	if err := m.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "a:1", State: "disabled"}); !errors.Is(err, ErrRedis) || len(m.AddressStates()) != 0 {
		t.Errorf("%v", err)
	}
}

func user(t testing.TB, name string) identity.User {
	t.Helper()
	return testkit.Must(identity.Canonicalize(name, "example.org"))(t)
}

func TestUsersStayAtTheirPlaceThroughFailures(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	both, bob := []string{"e1", "e2"}, user(t, "bob")
	claim := func(m *member, candidates, keep []string) (string, func()) {
		t.Helper()
		return m.Claim(t.Context(), "east", bob, candidates, keep)
	}
	expect := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: at %q, want %q", what, got, want)
		}
	}
	first, release := claim(a, both, nil)
	expect("the first login", first, "e1")
	at, releaseB := claim(b, []string{"e2", "e1"}, nil)
	expect("another gateway with another preference", at, "e1")
	releaseB()
	at, releaseB = claim(b, []string{"e2"}, nil)
	expect("e1 has failed", at, "e2")
	at, releaseA := claim(a, both, nil)
	expect("e1 has returned", at, "e2")
	releaseA()
	at, releaseA = claim(a, []string{"e1"}, []string{"e2"})
	expect("e2 is drained, and bob has sessions there", at, "e2")
	releaseA()
	at, releaseA = a.Claim(t.Context(), "east", user(t, "carol"), []string{"e1"}, []string{"e2"})
	expect("carol has none", at, "e1")
	releaseA()
	at, releaseA = a.Claim(t.Context(), "east", user(t, "dave"), nil, []string{"e2"})
	expect("no address takes new users", at, "")
	releaseA()

	r.Kill() // both have connections of bob at e2
	at, releaseA = claim(a, both, nil)
	expect("Redis is down, and this gateway knows bob", at, "e2")
	at, releaseDown := claim(b, both, nil)
	expect("Redis is down, and this gateway knows bob", at, "e2")
	r.RestartEmpty()
	testkit.Eventually(t, "bob's place is in Redis again", func() bool {
		_ = a.renewPlaces(t.Context())
		return r.CLI("GET", "imapgate:place:east:bob@example.org") == "e2"
	})
	c := join(t, "gw-c", dial(t, r.Address))
	at, releaseC := claim(c, both, nil)
	expect("a gateway that has just started", at, "e2")
	for _, release := range []func(){release, releaseA, releaseB, releaseC, releaseDown} {
		release()
		release() // again
	}
	if keys, _ := a.places.used(); len(keys) != 0 {
		t.Errorf("places are left: %v", keys)
	}
}

func TestStatesOfAddressesReachAllGatewaysAndLast(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	a, b := join(t, "gw-a", dial(t, r.Address)), join(t, "gw-b", dial(t, r.Address))
	want := AddressState{Backend: "east", Address: "127.0.0.1:993", State: "draining", By: "alice"}
	testkit.NoError(t, a.SetAddressState(t.Context(), want))
	testkit.NoError(t, b.loadStates(t.Context()))
	for _, m := range []*member{a, b, join(t, "gw-c", dial(t, r.Address))} {
		if got := <-m.states; got.key() != want.key() || got.State != "draining" || got.By != "alice" {
			t.Errorf("%+v", got)
		}
	}
	r.CLI("HSET", "imapgate:address_states", "west a:1", "sleepy", "nonsense", "{", "west b:1", "disabled")
	testkit.NoError(t, b.loadStates(t.Context()))
	if got := <-b.states; got.Address != "b:1" || got.State != "disabled" {
		t.Errorf("%+v", got)
	}
	testkit.NoError(t, a.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "127.0.0.1:993"}))
	testkit.NoError(t, b.loadStates(t.Context()))
	if got := <-b.states; got.State != "" || got.key() != want.key() {
		t.Errorf("%+v", got)
	}
	if err := a.SetAddressState(t.Context(), AddressState{Backend: "east", Address: "x:1", State: "sleepy"}); err == nil {
		t.Error("an unknown state is accepted")
	}
}

func TestAFleetWorksInARedisCluster(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedisCluster(t)
	var addresses []string
	for _, node := range r.Nodes {
		addresses = append(addresses, node.Address)
	}
	a, b := join(t, "gw-a", dial(t, addresses...)), join(t, "gw-b", dial(t, addresses...))
	reply := testkit.Must(a.Ask(t.Context(), "greet", greeting{"bob"}, "alice"))(t)
	if len(reply.Answers) != 2 || reply.Err != nil {
		t.Errorf("%+v", reply)
	}
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
}
