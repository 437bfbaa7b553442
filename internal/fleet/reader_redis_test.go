//go:build unix

package fleet

import (
	"crypto/rand"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

func newTestID() string { return rand.Text() }

func TestACommandIsCarriedOutOnceAndInTime(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := join(t, "gw-a", dial(t, r.Address))
	id := newTestID()
	for range 3 {
		m.write(t, id, "greet", `{"name":"bob"}`, time.Minute)
	}
	m.awaitAll(t)
	m.expectCalls(t, 1)
	m.write(t, id, "greet", `{"name":"bob"}`, time.Minute)
	m.awaitAll(t)
	m.expectCalls(t, 0)
	for _, text := range m.answersTo(t, id) { // each copy is answered alike
		if a, ok := parseAnswer(text); !ok || string(a.Result) != greetingA || a.ID != m.ID {
			t.Errorf("%q", text)
		}
	}

	late := newTestID()
	m.write(t, late, "greet", `{"name":"bob"}`, -time.Millisecond)
	m.awaitAll(t)
	m.expectCalls(t, 0)
	if answers := m.answersTo(t, late); len(answers) != 1 || !strings.Contains(answers[0], codeExpired) {
		t.Errorf("%q", answers)
	}
}

func TestAnythingMayBeInTheStream(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := join(t, "gw-a", dial(t, r.Address))
	const never = "9999999999999"
	for _, values := range [][]any{
		{"x", "y"},
		{"id", "{a}", "op", "greet", "args", `{"name":"x"}`, "deadline", never},
		{"id", "a b\r\nc", "op", "greet", "args", `{"name":"x"}`, "deadline", never},
		{"id", strings.Repeat("i", maxText+1), "op", "greet", "args", `{"name":"x"}`, "deadline", never},
		{"id", "", "op", "greet", "args", `{"name":"x"}`, "deadline", never},
		{"id", newTestID(), "op", "greet", "args", `{"name":"x"}`, "deadline", "soon"},
		{"id", newTestID(), "op", "greet", "args", `{"name":"x"}`, "deadline", "-9223372036854775808"},
		{"id", newTestID(), "op", "greet", "args", `{"name":"x"}`},
		{"id", newTestID(), "op", "greet", "args", `{"name":`, "deadline", never},
		{"id", newTestID(), "op", "greet", "args", `{"name":"x"} {}`, "deadline", never},
		{"id", newTestID(), "op", "greet", "args", `{"name":"` + strings.Repeat("x", maxArgs) + `"}`, "deadline", never},
		{"id", newTestID(), "op", strings.Repeat("o", maxText+1), "args", "{}", "deadline", never},
	} {
		testkit.NoError(t, m.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: m.commandsKey(), Values: values}).Err())
	}
	m.awaitAll(t)
	m.expectCalls(t, 0)
	id := newTestID()
	testkit.NoError(t, m.redis.XAdd(t.Context(), &redis.XAddArgs{Stream: m.commandsKey(), Values: []any{
		"id", id, "op", "greet", "args", `{"name":"bob"}`, "deadline", never, "by", "mallory\x1b[2J\r\n", "extra", "x",
	}}).Err())
	m.awaitAll(t)
	if answers := m.answersTo(t, id); len(answers) != 1 || !strings.Contains(answers[0], `for mallory [2J  "`) {
		t.Errorf("%q", answers)
	}
	r.CLI("SET", "imapgate:commands", "no stream")
	r.CLI("DEL", "imapgate:commands")
	m.calls.Store(0)
	m.awaitAll(t)
}

// A gateway whose connection breaks carries out what was ordered meanwhile, once.
func TestABrokenConnectionLosesNoCommand(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	line := faultproxy.Start(t, r.Address)
	m := join(t, "gw-a", dial(t, line.Address()))
	writer := newMember(t, "writer", dial(t, r.Address))
	ids := make([]string, 50)
	for i := range ids {
		ids[i] = newTestID()
		if i%10 == 0 {
			line.ResetConns()
		}
		writer.write(t, ids[i], "greet", `{"name":"bob"}`, time.Minute)
	}
	line.SetAcceptMode(faultproxy.Refuse)
	line.ResetConns()
	ids = append(ids, newTestID())
	writer.write(t, ids[len(ids)-1], "greet", `{"name":"bob"}`, time.Minute)
	line.SetAcceptMode(faultproxy.Accept)
	for _, id := range ids {
		testkit.Eventually(t, "the command is answered", func() bool { return len(writer.answersTo(t, id)) > 0 })
	}
	m.expectCalls(t, int64(len(ids)))
}

// observe makes the gateway log to the returned list.
func (m *member) observe() *observer.ObservedLogs {
	core, logs := observer.New(zap.WarnLevel)
	m.Log = zap.New(core)
	return logs
}

func TestCommandsThatWereRemovedUnreadAreReported(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	line := faultproxy.Start(t, r.Address)
	m := newMember(t, "gw-a", dial(t, line.Address()))
	logs := m.observe()
	m.run(t)
	writer := newMember(t, "writer", dial(t, r.Address))
	testkit.Eventually(t, "the gateway reads", m.isReading.Load)
	writer.awaitAll(t) // through gw-a
	line.SetAcceptMode(faultproxy.Refuse)
	line.ResetConns()
	writer.write(t, newTestID(), "greet", `{"name":"bob"}`, time.Minute)
	last := newTestID()
	writer.write(t, last, "greet", `{"name":"bob"}`, time.Minute)
	r.CLI("XTRIM", "imapgate:commands", "MAXLEN", "1")
	line.SetAcceptMode(faultproxy.Accept)
	testkit.Eventually(t, "the gateway goes on", func() bool { return len(writer.answersTo(t, last)) > 0 })
	m.expectCalls(t, 1)
	testkit.Eventually(t, "the loss is reported", func() bool { return logs.FilterMessageSnippet("commands may be lost").Len() == 1 })
}

// After the loss of a stream its positions begin again, and at lower ones where a clock went back.
func TestAGatewayFollowsAStreamThatBeginsAgain(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := newMember(t, "gw-a", dial(t, r.Address))
	logs := m.observe()
	m.run(t)
	testkit.Eventually(t, "the gateway reads", m.isReading.Load)
	m.awaitAll(t)
	r.CLI("DEL", "imapgate:commands")
	for i := range 3 {
		id := newTestID()
		r.CLI("XADD", "imapgate:commands", fmt.Sprintf("%d-1", 100+i), "id", id, "op", "greet", "args", `{"name":"bob"}`, "deadline", "9999999999999")
		testkit.Eventually(t, "the command is answered", func() bool { return len(m.answersTo(t, id)) == 1 })
	}
	m.expectCalls(t, 3)
	if logs.FilterMessageSnippet("Redis has lost commands").Len() == 0 {
		t.Error("the loss is not reported")
	}
}

func TestALostHeartbeatIsSentAgain(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	m := newMember(t, "gw-a", dial(t, r.Address))
	reader := &reader{Fleet: m.Fleet, client: m.redis, position: startOfStream}
	testkit.NoError(t, m.heartbeat(t.Context()))
	testkit.NoError(t, reader.checkLoss(t.Context()))
	if len(m.beat) != 0 {
		t.Error("a heartbeat is sent although Redis has one")
	}
	r.CLI("FLUSHALL")
	testkit.NoError(t, reader.checkLoss(t.Context()))
	if len(m.beat) != 1 {
		t.Error("no heartbeat is sent after the loss of the last one")
	}
}

// The read that waits for commands has a connection of its own.
func TestAWaitingReadTakesNoConnectionFromLogins(t *testing.T) {
	t.Parallel()
	r := testbed.StartRedis(t)
	o := redisOptions(r.Address)
	o.PoolSize = 1
	client := dialWith(t, o)
	m := newMember(t, "gw-a", client)
	reader := &reader{Fleet: m.Fleet, client: newReadClient(client)}
	defer reader.client.Close()
	testkit.NoError(t, client.Ping(t.Context()).Err())
	waiting := make(chan error)
	go func() { waiting <- reader.next(t.Context()) }()
	testkit.Eventually(t, "the gateway waits for commands", func() bool {
		return strings.Contains(r.CLI("CLIENT", "LIST"), "flags=b")
	})
	for range 100 { // the pool's only connection would not be free within PoolTimeout
		testkit.NoError(t, client.Ping(t.Context()).Err())
	}
	testkit.NoError(t, <-waiting)
}
