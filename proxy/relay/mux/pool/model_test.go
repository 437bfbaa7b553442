package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"imapgate/internal/event"
	"imapgate/internal/imap"
	"imapgate/internal/testbed"
	"imapgate/internal/testkit"
	"imapgate/proxy/relay/mux/lease"
)

// model runs random sessions of three users with two passwords each against a backend that
// sends unsolicited responses. It verifies that every lease has exactly the user, password and
// extensions requested, and no unread bytes.
type model struct {
	t        *testing.T
	r        *rand.Rand
	stub     *stub
	pool     *testPool
	sessions []*testSession
	steps    []string
}

type testSession struct {
	*Account
	user, password string
	leases         []*lease.Conn
}

var (
	modelUsers     = []string{"alice", "bob", "carol"}
	modelPasswords = []string{"pw", "app"}
	modelSets      = []imap.Extensions{"", "CONDSTORE", "CONDSTORE QRESYNC", "UTF8=ACCEPT"}
	unsolicited    = []string{"* 3 EXISTS", "A1 OK FETCH completed", "* BYE closing", "* OK hm", "* 1 FETCH (UID 7)"}
)

func TestLeasesNeverMixSessions(t *testing.T) {
	for seed := range uint64(12) {
		s := startStub(t, stubCaps)
		m := &model{t: t, r: rand.New(rand.NewPCG(seed, 7)), stub: s,
			pool: s.newPool(Config{Settings: Settings{CredentialCache: true, MaxTotal: 40}, MaxIdlePerCredential: 3, AnswerTimeout: time.Second})}
		for range 150 {
			m.step()
			if t.Failed() {
				t.Fatalf("seed %d: %s", seed, strings.Join(m.steps, ", "))
			}
		}
		for len(m.sessions) > 0 {
			m.endSession(m.sessions[0])
		}
		m.pool.mu.Lock()
		idle := m.pool.idle
		m.pool.mu.Unlock()
		if m.pool.slotCount() < idle {
			t.Errorf("seed %d: %d slots for %d idle", seed, m.pool.slotCount(), idle)
		}
	}
}

func (m *model) logStep(format string, args ...any) {
	m.steps = append(m.steps, fmt.Sprintf(format, args...))
}

func (m *model) step() {
	switch n := m.r.IntN(20); {
	case n < 4 && len(m.sessions) < 6:
		m.beginSession()
	case n < 6:
		m.sendUnsolicited()
	case n < 7:
		m.ageIdle()
	case len(m.sessions) == 0:
	case n < 12:
		m.acquireLease(m.pickSession())
	case n < 17:
		m.releaseLease(m.pickSession())
	case n < 18:
		m.logStep("revoke")
		m.pickSession().RevokeCredential()
	default:
		m.endSession(m.pickSession())
	}
}

func (m *model) pickSession() *testSession { return m.sessions[m.r.IntN(len(m.sessions))] }

func (m *model) beginSession() {
	u, pw, proof := modelUsers[m.r.IntN(3)], modelPasswords[m.r.IntN(2)], Verification(m.r.IntN(2))
	m.logStep("login %s %s %d", u, pw, proof)
	m.sessions = append(m.sessions, &testSession{Account: m.pool.mustLogIn(u, pw, proof), user: u, password: pw})
}

func (m *model) acquireLease(s *testSession) {
	if len(s.leases) >= 4 {
		return
	}
	set := modelSets[m.r.IntN(len(modelSets))]
	m.logStep("lease %s %s (%s)", s.user, s.password, set)
	c, err := s.Acquire(context.Background(), set)
	if err != nil {
		m.t.Error(err)
		return
	}
	if c.Selected || c.HasUnread() || !c.AtBoundary() {
		m.t.Error("a lease has unread bytes")
		s.Discard(c, event.DiscardPinned)
		return
	}
	if got, want := identifyConn(m.t, c), fmt.Sprintf("%s %s (%s)", s.user, s.password, set); got != want || c.Enabled != set {
		m.t.Errorf("the lease of %q is %q", want, got)
	}
	s.leases = append(s.leases, c)
}

func (m *model) releaseLease(s *testSession) {
	if len(s.leases) == 0 {
		return
	}
	c := s.leases[0]
	s.leases = s.leases[1:]
	n := m.r.IntN(4)
	m.logStep("release %s %s by %d", s.user, s.password, n)
	c.Selected = n%2 == 0
	switch n {
	case 0:
		s.Discard(c, event.DiscardPinned)
		return
	case 1: // with an outstanding command
		if _, err := c.Write([]byte("A5 SEARCH ALL\r\n")); err != nil {
			m.t.Error(err)
		}
	}
	s.Release(c)
}

func (m *model) endSession(s *testSession) {
	for _, c := range s.leases {
		s.Release(c)
	}
	m.logStep("end %s %s", s.user, s.password)
	s.Close()
	m.sessions = slices.DeleteFunc(m.sessions, func(other *testSession) bool { return other == s })
}

// pickIdle returns a random idle connection, nil if no connection is idle.
func (m *model) pickIdle() *pooledConn {
	all := m.pool.idleConns()
	if len(all) == 0 {
		return nil
	}
	return all[m.r.IntN(len(all))]
}

// sendUnsolicited makes the backend send a line on an idle connection and waits until it has
// arrived.
func (m *model) sendUnsolicited() {
	pc := m.pickIdle()
	if pc == nil {
		return
	}
	line := unsolicited[m.r.IntN(len(unsolicited))]
	m.logStep("%s: %s", pc.User(), line)
	p, before := m.stub.findConn(&pc.Conn), m.lastAnswer(pc)
	_ = p.Send(line)
	if line == "* BYE closing" {
		_ = p.Close()
	}
	testkit.Eventually(m.t, "a stray line", func() bool { return pc.IsReadable() || m.lastAnswer(pc) != before })
}

// lastAnswer returns the time of a connection's last response, zero if the cleaner or a lease
// has taken it.
func (m *model) lastAnswer(pc *pooledConn) time.Time {
	m.pool.Pool.mu.Lock()
	defer m.pool.Pool.mu.Unlock()
	if pc.idleElem == nil {
		return time.Time{}
	}
	return pc.lastAnswer
}

// ageIdle makes an idle connection need validation before its next use.
func (m *model) ageIdle() {
	if pc := m.pickIdle(); pc != nil {
		m.logStep("age %s", pc.User())
		m.pool.Pool.mu.Lock()
		pc.lastAnswer = pc.lastAnswer.Add(-2 * time.Hour)
		m.pool.Pool.mu.Unlock()
	}
}

func TestConcurrentSessionsNeverShareConnections(t *testing.T) {
	s := startStub(t, stubCaps)
	tp := s.newPool(Config{Settings: Settings{MaxPerUser: 3, MaxTotal: 5}, ValidateAfter: time.Millisecond})
	var wg sync.WaitGroup
	for n := range uint64(16) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(n, 1))
			for range 25 {
				runSession(t, tp, r)
			}
		})
	}
	wg.Wait()
	if tp.slotCount() != tp.idleCount() {
		t.Errorf("%d slots, %d idle", tp.slotCount(), tp.idleCount())
	}
}

// runSession runs one session of a random user.
func runSession(t *testing.T, tp *testPool, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*testbed.Timeout)
	defer cancel()
	u, pw, set := modelUsers[r.IntN(3)], modelPasswords[r.IntN(2)], modelSets[r.IntN(2)]
	a, err := tp.Login(ctx, newRequest(t, u, pw), VerifiedHere)
	if err != nil {
		t.Error(err)
		return
	}
	defer a.Close()
	tp.Pool.mu.Lock()
	if n := a.cred.user.connCounts; len(tp.conns) > 5 || tp.total > 5 || n[clientUse] > 2 || n[gatewayUse] > 1 {
		t.Errorf("%d connections, of %s %d", len(tp.conns), u, n)
	}
	tp.Pool.mu.Unlock()
	c, err := a.Acquire(ctx, set)
	if err != nil {
		t.Error(err)
		return
	}
	if got, want := identifyConn(t, c), fmt.Sprintf("%s %s (%s)", u, pw, set); got != want {
		t.Errorf("the lease of %q is %q", want, got)
	}
	if r.IntN(3) == 0 {
		if aux, err := a.AcquireAux(ctx); err == nil {
			if got := identifyConn(t, aux); !strings.HasPrefix(got, u+" "+pw+" ") {
				t.Errorf("the gateway's own connection of %s is %q", u, got)
			}
			aux.Enabled = "CONDSTORE"
			a.ReleaseAux(aux)
		} else if !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
	}
	switch r.IntN(4) {
	case 0:
		a.Discard(c, event.DiscardPinned)
	case 1:
		_, _ = c.Write([]byte("A5 SEARCH ALL\r\n"))
		a.Release(c)
	default:
		c.Selected = true
		a.Release(c)
	}
}
