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

	"imapgate/internal/faultproxy"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
)

const (
	knownUserCount  = 34 // users with cached routes
	maxSessions     = 10 // per user, at both gateways together; a slot is released shortly after a session ends
	loginsPerWorker = 50 // during a fault
)

// redisFault is a fault of Redis with functions that begin and end it.
type redisFault struct {
	name       string
	begin, end func(*redisFaultTest)
}

// redisFaultTest is a Redis that two gateways use, through a proxy, for routes, limits
// and the audit log.
type redisFaultTest struct {
	t         *testing.T
	redis     *testbed.Redis
	proxy     *faultproxy.Proxy
	gateways  [2]*gatewayProcess
	faultName string // of the fault, part of user names
}

// redisFaults are faults of real servers, whose errors come from Redis itself. The first
// ones are part of every run, the others of soak tests.
var redisFaults = []redisFault{
	{"killed", func(p *redisFaultTest) { p.redis.Kill() }, func(p *redisFaultTest) { p.redis.Restart() }},
	{"frozen", func(p *redisFaultTest) { p.redis.Freeze() }, func(p *redisFaultTest) { p.redis.Thaw() }},
	{"readonly", func(p *redisFaultTest) { p.redis.CLI("REPLICAOF", "127.0.0.1", "1") }, func(p *redisFaultTest) { p.redis.CLI("REPLICAOF", "NO", "ONE") }},
	{"swallowed", func(p *redisFaultTest) { p.setFaults(faultproxy.Fault{Action: faultproxy.Blackhole}) }, func(p *redisFaultTest) { p.setFaults() }},
	{"refused", func(p *redisFaultTest) { p.proxy.SetAcceptMode(faultproxy.Refuse); p.proxy.ResetConns() },
		func(p *redisFaultTest) { p.proxy.SetAcceptMode(faultproxy.Accept) }},
	{"loading", (*redisFaultTest).beginLoading, (*redisFaultTest).endLoading},
	{"oom", func(p *redisFaultTest) { p.redis.CLI("CONFIG", "SET", "maxmemory", "1") }, func(p *redisFaultTest) { p.redis.CLI("CONFIG", "SET", "maxmemory", "0") }},
	{"misconf", (*redisFaultTest).failSaves, (*redisFaultTest).restoreSaves},
	{"noauth", (*redisFaultTest).requirePassword, (*redisFaultTest).dropPassword},
}

// During a Redis fault users with cached routes log in, and each gateway applies the limits
// on its own. After it the limits are shared again. The audit stream in the same Redis delays
// no login.
func TestKnownUsersLogInDuringRedisFaults(t *testing.T) {
	redis := testbed.StartRedis(t, "--enable-debug-command", "yes", "--loading-process-events-interval-bytes", "1024")
	p := &redisFaultTest{t: t, redis: redis, proxy: faultproxy.Start(t, redis.Address)}
	p.startGateways(fmt.Sprintf("redis: {addresses: [%q]}", p.proxy.Address()))
	for _, a := range redisFaults[:testSize(3, len(redisFaults))] {
		t.Run(a.name, func(t *testing.T) {
			p.t, p.faultName = t, a.name
			p.run(func() { a.begin(p) }, func() { a.end(p) }, (*redisFaultTest).awaitLocalLimits)
		})
	}
}

// A failover may be over before a gateway uses its local limits, so the test does not wait
// for that.
func TestKnownUsersLogInDuringSentinelFailover(t *testing.T) {
	s := testbed.StartRedisSentinel(t)
	p := &redisFaultTest{t: t, redis: s.Primary(), faultName: "failover"}
	addresses := `"` + strings.Join(s.Addresses, `", "`) + `"`
	p.startGateways(fmt.Sprintf("redis: {addresses: [%s], sentinel_master: %s}", addresses, testbed.SentinelName))
	p.run(s.Failover, func() { p.redis = s.Primary() }, func(*redisFaultTest) {})
}

// startGateways starts the gateways.
func (p *redisFaultTest) startGateways(redis string) {
	p.t.Helper()
	ca := testbed.NewCA(p.t)
	backend := startStub(p.t, nil)
	for i := range p.gateways {
		dir := p.t.TempDir()
		p.gateways[i] = startProcess(p.t, ca, redis,
			fmt.Sprintf("backends:\n  east: {address: %q, tls: none}", backend.Addr()),
			fmt.Sprintf("limits: {exempt_networks: [], connections: {per_user: %d, per_user_address: 0, per_address: 0, "+
				"preauth_per_address: 0, new_per_minute: 0}}", maxSessions),
			fmt.Sprintf("audit:\n  sinks:\n    - {type: file, path: %s/audit}\n    - {type: redis, on_failure: drop}", dir))
	}
}

// run runs one fault from beginning to end.
func (p *redisFaultTest) run(begin, end func(), awaitLocal func(*redisFaultTest)) {
	p.t.Helper()
	for i := range knownUserCount {
		p.redis.CLI("HSET", "imapgate:user:"+p.knownUser(i), "backend", "east")
	}
	fullUser, otherUser := p.knownUser(0), p.knownUser(1)
	for _, gate := range p.gateways {
		for i := range knownUserCount {
			if err := p.runSession(gate, p.knownUser(i)); err != nil {
				p.t.Fatal(err)
			}
		}
	}
	p.awaitSharedLimits()
	p.fillSessions(p.gateways[0], fullUser)
	p.expectLimit(p.gateways[1], fullUser)

	begin()
	awaitLocal(p)
	p.runLogins()
	p.fillSessions(p.gateways[1], otherUser)
	p.expectLimit(p.gateways[1], otherUser)
	p.expectLimit(p.gateways[0], fullUser)
	end()

	p.awaitSharedLimits()
	testkit.Eventually(p.t, "a limit to be that of both gateways again", func() bool {
		return isLimitReached(p.runSession(p.gateways[0], otherUser)) && isLimitReached(p.runSession(p.gateways[1], fullUser))
	})
	p.runLogins()
	p.expectAuditStream()
}

func (p *redisFaultTest) knownUser(i int) string { return fmt.Sprintf("%s%d", p.faultName, i) }

// fillSessions opens the maximum number of sessions of a user. They end with the test.
func (p *redisFaultTest) fillSessions(gate *gatewayProcess, user string) {
	p.t.Helper()
	for range maxSessions {
		phone, err := loginLight(gate, user)
		if err != nil {
			p.t.Fatalf("one of the sessions that %s may have: %v", user, err)
		}
		p.t.Cleanup(func() { _ = phone.conn.Close() })
	}
}

// loginLight logs in.
func loginLight(gate *gatewayProcess, user string) (*lightClient, error) {
	phone, err := dialLight(gate.endpoint("implicit"), "")
	if err != nil {
		return nil, err
	}
	if err := phone.exec("LOGIN " + user + " " + password); err != nil {
		return nil, errors.Join(err, phone.conn.Close())
	}
	return phone, nil
}

func (p *redisFaultTest) runSession(gate *gatewayProcess, user string) error {
	phone, err := loginLight(gate, user)
	if err != nil {
		return err
	}
	defer phone.conn.Close() // logged out
	return phone.exec("LOGOUT")
}

func isLimitReached(err error) bool {
	return err != nil && strings.Contains(err.Error(), " NO [LIMIT] ")
}

func (p *redisFaultTest) expectLimit(gate *gatewayProcess, user string) {
	p.t.Helper()
	if err := p.runSession(gate, user); !isLimitReached(err) {
		p.t.Errorf("one session of %s more than it may have: %v", user, err)
	}
}

// awaitLocalLimits waits until the gateways have detected the fault. Logins must succeed
// until then.
func (p *redisFaultTest) awaitLocalLimits() {
	p.t.Helper()
	testkit.Eventually(p.t, "a gateway to count alone", func() bool {
		if err := p.runSession(p.gateways[1], p.knownUser(2)); err != nil {
			p.t.Error(err)
		}
		return p.gateways[1].sumMetric(p.t, "imapgate_limits_cluster_connected") == 0
	})
}

func (p *redisFaultTest) awaitSharedLimits() {
	p.t.Helper()
	testkit.Eventually(p.t, "the gateways to count together", func() bool {
		return p.gateways[0].sumMetric(p.t, "imapgate_limits_cluster_connected") == 1 && p.gateways[1].sumMetric(p.t, "imapgate_limits_cluster_connected") == 1
	})
}

// runLogins logs known users in and out at both gateways. At least 99.9 % must succeed.
func (p *redisFaultTest) runLogins() {
	p.t.Helper()
	seed := testbed.Seed(p.t)
	var mu sync.Mutex
	var logins, failed int
	var first error
	var workers sync.WaitGroup
	for w := range uint64(4) {
		workers.Go(func() {
			random := rand.New(rand.NewPCG(seed, w))
			for range loginsPerWorker {
				// Each worker has its own users, so that none reaches the session limit.
				user := p.knownUser(2 + int(w) + 4*random.IntN((knownUserCount-2)/4))
				err := p.runSession(p.gateways[random.IntN(2)], user)
				mu.Lock()
				logins++
				if err != nil {
					failed++
					first = errors.Join(first, err)
				}
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	p.t.Logf("%d logins, %d failed", logins, failed)
	if failed*1000 > logins || logins == 0 {
		p.t.Errorf("%d of %d logins failed: %v", failed, logins, first)
	}
}

// expectAuditStream waits until audit records arrive in Redis again.
func (p *redisFaultTest) expectAuditStream() {
	p.t.Helper()
	length := func() int {
		n, err := strconv.Atoi(p.redis.CLI("XLEN", "imapgate:audit"))
		if err != nil {
			p.t.Fatal(err)
		}
		return n
	}
	before := length()
	testkit.Eventually(p.t, "audit records to reach Redis again", func() bool {
		return p.runSession(p.gateways[0], p.knownUser(2)) == nil && length() > before
	})
}

func (p *redisFaultTest) setFaults(faults ...faultproxy.Fault) {
	for _, d := range []faultproxy.Direction{faultproxy.ToTarget, faultproxy.ToClient} {
		p.proxy.SetRules(d, faultproxy.Rules{Faults: faults})
	}
}

// beginLoading makes the server reload its keys slowly, so that it answers -LOADING until
// endLoading.
func (p *redisFaultTest) beginLoading() {
	for i := range 400 {
		p.redis.CLI("SET", fmt.Sprintf("ballast%d", i), strings.Repeat("x", 1000))
	}
	p.redis.CLI("CONFIG", "SET", "key-load-delay", "20000")
	var reading sync.WaitGroup
	reading.Go(func() { _, _ = p.redis.TryCLI("DEBUG", "RELOAD") }) // returns when it is done
	p.t.Cleanup(reading.Wait)
	testkit.Eventually(p.t, "Redis to load", func() bool {
		_, err := p.redis.TryCLI("GET", "ballast0")
		return err != nil && strings.Contains(err.Error(), "LOADING")
	})
}

func (p *redisFaultTest) endLoading() {
	testkit.Eventually(p.t, "Redis to have loaded", func() bool {
		_, _ = p.redis.TryCLI("CONFIG", "SET", "key-load-delay", "0") // most attempts fail
		return outcomeOf(p.redis.TryCLI("GET", "ballast0")) == nil
	})
}

// failSaves makes a save fail by a folder in the place of the file. After that Redis refuses
// writes.
func (p *redisFaultTest) failSaves() {
	p.editDumpFile(func(path string) error {
		return errors.Join(os.RemoveAll(path), os.MkdirAll(filepath.Join(path, "full"), 0o755))
	})
	p.redis.CLI("CONFIG", "SET", "save", "3600 1")
	p.redis.CLI("BGSAVE")
	testkit.Eventually(p.t, "a save to fail", func() bool {
		return strings.Contains(p.redis.CLI("INFO", "persistence"), "rdb_last_bgsave_status:err")
	})
}

func (p *redisFaultTest) restoreSaves() {
	p.editDumpFile(os.RemoveAll)
	p.redis.CLI("BGSAVE")
	testkit.Eventually(p.t, "a save to succeed", func() bool {
		return strings.Contains(p.redis.CLI("INFO", "persistence"), "rdb_last_bgsave_status:ok")
	})
	p.redis.CLI("CONFIG", "SET", "save", "")
}

// editDumpFile calls do with the path of the dump file.
func (p *redisFaultTest) editDumpFile(do func(path string) error) {
	p.t.Helper()
	if err := do(filepath.Join(p.redis.Dir(), "dump.rdb")); err != nil {
		p.t.Fatal(err)
	}
}

// requirePassword sets a password that the gateways do not know.
func (p *redisFaultTest) requirePassword() {
	p.redis.CLI("CONFIG", "SET", "requirepass", "another")
	p.proxy.ResetConns()
}

func (p *redisFaultTest) dropPassword() {
	p.redis.CLI("-a", "another", "--no-auth-warning", "CONFIG", "SET", "requirepass", "")
}
