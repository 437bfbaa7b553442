package tests

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
)

const (
	regulars    = 34               // users whom the gateways know
	sessionsMax = 10               // of a user, at both gateways together; a place is given back a moment after it is left
	comings     = 50               // of each visitor during a fault
	healLimit   = 20 * time.Second // until limits are common again
)

// ailment is something that befalls a Redis: begin it, and end it.
type ailment struct {
	name       string
	begin, end func(*patient)
}

// patient is a Redis that two gateways use, through a proxy, for routes, limits
// and the audit log.
type patient struct {
	t     *testing.T
	redis *testbed.Redis
	proxy *faultproxy.Proxy
	gates [2]*binary
	name  string // of the ailment, as user names have it
}

// ailments are what real servers do: each error is said by Redis itself. The
// first of them befall it every day, the others in soaks.
var ailments = []ailment{
	{"killed", func(p *patient) { p.redis.Kill() }, func(p *patient) { p.redis.Restart() }},
	{"frozen", func(p *patient) { p.redis.Freeze() }, func(p *patient) { p.redis.Thaw() }},
	{"readonly", func(p *patient) { p.redis.CLI("REPLICAOF", "127.0.0.1", "1") }, func(p *patient) { p.redis.CLI("REPLICAOF", "NO", "ONE") }},
	{"swallowed", func(p *patient) { p.swallow(faultproxy.Fault{Do: faultproxy.Blackhole}) }, func(p *patient) { p.swallow() }},
	{"refused", func(p *patient) { p.proxy.SetDoor(faultproxy.Closed); p.proxy.Reset() },
		func(p *patient) { p.proxy.SetDoor(faultproxy.Open) }},
	{"loading", (*patient).load, (*patient).loaded},
	{"oom", func(p *patient) { p.redis.CLI("CONFIG", "SET", "maxmemory", "1") }, func(p *patient) { p.redis.CLI("CONFIG", "SET", "maxmemory", "0") }},
	{"misconf", (*patient).breakSaves, (*patient).mendSaves},
	{"noauth", (*patient).lock, (*patient).unlock},
}

// While Redis ails, those whom a gateway knows log in, and
// the limits hold at each gateway; behind it they hold for both together again.
// The audit log's stream in the same Redis keeps nobody waiting.
func TestWhateverBefallsRedisKnownUsersLogInAndLimitsHold(t *testing.T) {
	redis := testbed.StartRedis(t, "--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024")
	p := &patient{t: t, redis: redis, proxy: faultproxy.Start(t, redis.Address)}
	p.open(fmt.Sprintf("redis: {addresses: [%q]}", p.proxy.Address()))
	for _, a := range ailments[:soaked(3, len(ailments))] {
		t.Run(a.name, func(t *testing.T) {
			p.t, p.name = t, a.name
			p.suffer(func() { a.begin(p) }, func() { a.end(p) }, (*patient).wantApart)
		})
	}
}

// A failover is over before limits are counted apart for long, so that is not
// waited for.
func TestWhileSentinelsFailOverKnownUsersLogInAndLimitsHold(t *testing.T) {
	s := testbed.StartRedisSentinel(t)
	p := &patient{t: t, redis: s.Primary(), name: "failover"}
	addresses := `"` + strings.Join(s.Addresses, `", "`) + `"`
	p.open(fmt.Sprintf("redis: {addresses: [%s], sentinel_master: %s}", addresses, testbed.SentinelName))
	p.suffer(s.Failover, func() { p.redis = s.Primary() }, func(*patient) {})
}

// open starts the gateways.
func (p *patient) open(redis string) {
	p.t.Helper()
	ca := testbed.NewCA(p.t)
	backend := startStub(p.t, nil)
	for i := range p.gates {
		dir := p.t.TempDir()
		p.gates[i] = startBinary(p.t, ca, redis,
			fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", backend.address()),
			fmt.Sprintf("limits: {exempt_networks: [], connections: {per_user: %d, per_user_address: 0, per_address: 0, "+
				"preauth_per_address: 0, new_per_minute: 0}}", sessionsMax),
			fmt.Sprintf("audit:\n  sinks:\n    - {type: file, path: %s/audit}\n    - {type: redis, on_failure: drop}", dir))
	}
}

// suffer is one ailment from beginning to end.
func (p *patient) suffer(begin, end func(), apart func(*patient)) {
	p.t.Helper()
	for i := range regulars {
		p.redis.CLI("HSET", "imapgate:user:"+p.regular(i), "backend", "east")
	}
	stay, greedy := p.regular(0), p.regular(1)
	for _, gate := range p.gates {
		for i := range regulars {
			if err := p.visit(gate, p.regular(i)); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.wantTogether()
	p.fill(p.gates[0], stay)
	p.wantFull(p.gates[1], stay)

	begin()
	apart(p)
	p.crowd()
	p.fill(p.gates[1], greedy)
	p.wantFull(p.gates[1], greedy)
	p.wantFull(p.gates[0], stay)
	end()

	p.wantTogether()
	testbed.Within(p.t, healLimit, "a limit to be that of both gateways again", func() bool {
		return isFull(p.visit(p.gates[0], greedy)) && isFull(p.visit(p.gates[1], stay))
	})
	p.crowd()
	p.wantStream()
}

func (p *patient) regular(i int) string { return fmt.Sprintf("%s%d", p.name, i) }

// fill takes all sessions that a user may have; they end with the test.
func (p *patient) fill(gate *binary, user string) {
	p.t.Helper()
	for range sessionsMax {
		phone, err := enterAs(gate, user)
		if err != nil {
			p.t.Fatalf("one of the sessions that %s may have: %v", user, err)
		}
		p.t.Cleanup(func() { _ = phone.conn.Close() })
	}
}

// enterAs logs in.
func enterAs(gate *binary, user string) (*phone, error) {
	phone, err := call(gate.endpoint("implicit"), "")
	if err != nil {
		return nil, err
	}
	if err := phone.ask("LOGIN " + user + " " + password); err != nil {
		return nil, errors.Join(err, phone.conn.Close())
	}
	return phone, nil
}

func (p *patient) visit(gate *binary, user string) error {
	phone, err := enterAs(gate, user)
	if err != nil {
		return err
	}
	defer phone.conn.Close() // it has logged out
	return phone.ask("LOGOUT")
}

func isFull(err error) bool { return err != nil && strings.Contains(err.Error(), " NO [LIMIT] ") }

func (p *patient) wantFull(gate *binary, user string) {
	p.t.Helper()
	if err := p.visit(gate, user); !isFull(err) {
		p.t.Errorf("one session of %s more than it may have: %v", user, err)
	}
}

// wantApart waits until a gateway has noticed, and logins go well meanwhile.
func (p *patient) wantApart() {
	p.t.Helper()
	testbed.Within(p.t, healLimit, "a gateway to count alone", func() bool {
		if err := p.visit(p.gates[1], p.regular(2)); err != nil {
			p.t.Error(err)
		}
		return p.gates[1].metric(p.t, "imapgate_limits_cluster_connected") == 0
	})
}

func (p *patient) wantTogether() {
	p.t.Helper()
	testbed.Within(p.t, healLimit, "the gateways to count together", func() bool {
		return p.gates[0].metric(p.t, "imapgate_limits_cluster_connected") == 1 && p.gates[1].metric(p.t, "imapgate_limits_cluster_connected") == 1
	})
}

// crowd lets regulars come and go at both gateways: at least 99.9 of a hundred get
// in.
func (p *patient) crowd() {
	p.t.Helper()
	seed := testbed.Seed(p.t)
	var mu sync.Mutex
	var visits, failed int
	var first error
	var visitors sync.WaitGroup
	for w := range uint64(4) {
		visitors.Go(func() {
			random := rand.New(rand.NewPCG(seed, w))
			for range comings {
				// Each visitor has users of its own: more sessions than a user may
				// have would be refused.
				user := p.regular(2 + int(w) + 4*random.IntN((regulars-2)/4))
				err := p.visit(p.gates[random.IntN(2)], user)
				mu.Lock()
				visits++
				if err != nil {
					failed++
					first = errors.Join(first, err)
				}
				mu.Unlock()
			}
		})
	}
	visitors.Wait()
	p.t.Logf("%d logins, %d failed", visits, failed)
	if failed*1000 > visits || visits == 0 {
		p.t.Errorf("%d of %d logins failed: %v", failed, visits, first)
	}
}

// wantStream wants records to arrive in Redis again.
func (p *patient) wantStream() {
	p.t.Helper()
	length := func() int {
		n, err := strconv.Atoi(p.redis.CLI("XLEN", "imapgate:audit"))
		if err != nil {
			p.t.Fatal(err)
		}
		return n
	}
	before := length()
	testbed.Within(p.t, healLimit, "audit records to reach Redis again", func() bool {
		return p.visit(p.gates[0], p.regular(2)) == nil && length() > before
	})
}

func (p *patient) swallow(faults ...faultproxy.Fault) {
	for _, d := range []faultproxy.Direction{faultproxy.ToTarget, faultproxy.ToClient} {
		p.proxy.Set(d, faultproxy.Rules{Faults: faults})
	}
}

// load has the server read its keys again, so slowly that it answers -LOADING
// until loaded.
func (p *patient) load() {
	for i := range 400 {
		p.redis.CLI("SET", fmt.Sprintf("ballast%d", i), strings.Repeat("x", 1000))
	}
	p.redis.CLI("CONFIG", "SET", "key-load-delay", "20000")
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = p.redis.Try("DEBUG", "RELOAD") }) // answers when it is over
	p.t.Cleanup(reading.Wait)
	testbed.Within(p.t, healLimit, "Redis to load", func() bool {
		_, err := p.redis.Try("GET", "ballast0")
		return err != nil && strings.Contains(err.Error(), "LOADING")
	})
}

func (p *patient) loaded() {
	testbed.Within(p.t, healLimit, "Redis to have loaded", func() bool {
		_, _ = p.redis.Try("CONFIG", "SET", "key-load-delay", "0") // it answers now and then
		return ran(p.redis.Try("GET", "ballast0")) == nil
	})
}

// breakSaves makes a save fail, behind which Redis takes no writes: where the file
// should go there is a folder.
func (p *patient) breakSaves() {
	p.dump(func(path string) error {
		return errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "full"), 0o755))
	})
	p.redis.CLI("CONFIG", "SET", "save", "3600 1")
	p.redis.CLI("BGSAVE")
	testbed.Within(p.t, healLimit, "a save to fail", func() bool {
		return strings.Contains(p.redis.CLI("INFO", "persistence"), "rdb_last_bgsave_status:err")
	})
}

func (p *patient) mendSaves() {
	p.dump(os.RemoveAll)
	p.redis.CLI("BGSAVE")
	testbed.Within(p.t, healLimit, "a save to succeed", func() bool {
		return strings.Contains(p.redis.CLI("INFO", "persistence"), "rdb_last_bgsave_status:ok")
	})
	p.redis.CLI("CONFIG", "SET", "save", "")
}

// dump does something to the file that saves are written to.
func (p *patient) dump(do func(path string) error) {
	p.t.Helper()
	if err := do(filepath.Join(p.redis.Dir(), "dump.rdb")); err != nil {
		p.t.Fatal(err)
	}
}

// lock sets a password that the gateways do not have.
func (p *patient) lock() {
	p.redis.CLI("CONFIG", "SET", "requirepass", "another")
	p.proxy.Reset()
}

func (p *patient) unlock() {
	p.redis.CLI("-a", "another", "--no-auth-warning", "CONFIG", "SET", "requirepass", "")
}
