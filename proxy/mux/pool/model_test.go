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

	"imapgate/internal/metrics"
	"imapgate/internal/testbed"
	"imapgate/proxy/mux/lease"
)

// model is a session after session of three users with two passwords each, and a
// backend that speaks out of turn. What it asserts of every lease: it is of the
// very user, password and set of extensions, and has nothing to say.
type model struct {
	t    *testing.T
	r    *rand.Rand
	s    *stub
	y    *tally
	open []*session
	said []string
}

type session struct {
	*Account
	user, password string
	out            []*lease.Conn
}

var (
	modelUsers     = []string{"alice", "bob", "carol"}
	modelPasswords = []string{"pw", "app"}
	modelSets      = []lease.Enabled{"", "CONDSTORE", "CONDSTORE QRESYNC", "UTF8=ACCEPT"}
	strays         = []string{"* 3 EXISTS", "A1 OK FETCH completed", "* BYE away", "* OK hm", "* 1 FETCH (UID 7)"}
)

func TestNoLeaseIsAnotherSessionsWhateverComesInWhatOrder(t *testing.T) {
	for seed := range uint64(12) {
		s := startStub(t, stubCaps)
		m := &model{t: t, r: rand.New(rand.NewPCG(seed, 7)), s: s,
			y: s.pool(Config{CredCache: true, IdlePerAccount: 3, MaxTotal: 40, Answer: time.Second})}
		for range 150 {
			m.step()
			if t.Failed() {
				t.Fatalf("seed %d: %s", seed, strings.Join(m.said, ", "))
			}
		}
		for len(m.open) > 0 {
			m.end(m.open[0])
		}
		m.y.mu.Lock()
		waiting := m.y.waiting
		m.y.mu.Unlock()
		if m.y.places() < waiting {
			t.Errorf("seed %d: %d places for %d who wait", seed, m.y.places(), waiting)
		}
	}
}

func (m *model) note(format string, args ...any) {
	m.said = append(m.said, fmt.Sprintf(format, args...))
}

func (m *model) step() {
	switch n := m.r.IntN(20); {
	case n < 4 && len(m.open) < 6:
		m.begin()
	case n < 6:
		m.stray()
	case n < 7:
		m.age()
	case len(m.open) == 0:
	case n < 12:
		m.lease(m.pick())
	case n < 17:
		m.giveBack(m.pick())
	case n < 18:
		m.note("forget")
		m.pick().Forget()
	default:
		m.end(m.pick())
	}
}

func (m *model) pick() *session { return m.open[m.r.IntN(len(m.open))] }

func (m *model) begin() {
	u, pw, proof := modelUsers[m.r.IntN(3)], modelPasswords[m.r.IntN(2)], Proof(m.r.IntN(2))
	m.note("login %s %s %d", u, pw, proof)
	m.open = append(m.open, &session{Account: m.y.login(u, pw, proof), user: u, password: pw})
}

func (m *model) lease(s *session) {
	if len(s.out) >= 4 {
		return
	}
	set := modelSets[m.r.IntN(len(modelSets))]
	m.note("lease %s %s (%s)", s.user, s.password, set)
	c, err := s.Lease(context.Background(), set)
	if err != nil {
		m.t.Error(err)
		return
	}
	if c.Selected || c.Pending() || !c.Between() {
		m.t.Error("a lease has something to say")
		s.Destroy(c, metrics.DiscardPinned)
		return
	}
	if got, want := who(m.t, c), fmt.Sprintf("%s %s (%s)", s.user, s.password, set); got != want || c.Enabled != set {
		m.t.Errorf("the lease of %q is %q", want, got)
	}
	s.out = append(s.out, c)
}

func (m *model) giveBack(s *session) {
	if len(s.out) == 0 {
		return
	}
	c := s.out[0]
	s.out = s.out[1:]
	n := m.r.IntN(4)
	m.note("return %s %s by %d", s.user, s.password, n)
	c.Selected = n%2 == 0
	switch n {
	case 0:
		s.Destroy(c, metrics.DiscardPinned)
		return
	case 1: // with a command outstanding that nobody will read the answer to
		if _, err := c.Write([]byte("A5 SEARCH ALL\r\n")); err != nil {
			m.t.Error(err)
		}
	}
	s.Return(c)
}

func (m *model) end(s *session) {
	for _, c := range s.out {
		s.Return(c)
	}
	m.note("end %s %s", s.user, s.password)
	s.Close()
	m.open = slices.DeleteFunc(m.open, func(other *session) bool { return other == s })
}

// resting is one of those that wait, if any.
func (m *model) resting() *held {
	all := m.y.resting()
	if len(all) == 0 {
		return nil
	}
	return all[m.r.IntN(len(all))]
}

// stray makes the backend speak on a connection that waits, and waits until it
// can be heard.
func (m *model) stray() {
	h := m.resting()
	if h == nil {
		return
	}
	said := strays[m.r.IntN(len(strays))]
	m.note("%s: %s", h.User(), said)
	p, before := m.s.of(&h.Conn), m.heard(h)
	p.say(said)
	if said == "* BYE away" {
		_ = p.nc.Close()
	}
	settled(m.t, "a stray line", func() bool { return h.Stirs() || m.heard(h) != before })
}

// heard is when a connection last answered, or zero when it waits no more: the
// janitor may have been there.
func (m *model) heard(h *held) time.Time {
	m.y.Pool.mu.Lock()
	defer m.y.Pool.mu.Unlock()
	if h.waiting == nil {
		return time.Time{}
	}
	return h.heard
}

// age makes one that waits be asked before it is used.
func (m *model) age() {
	if h := m.resting(); h != nil {
		m.note("age %s", h.User())
		m.y.Pool.mu.Lock()
		h.heard = h.heard.Add(-2 * time.Hour)
		m.y.Pool.mu.Unlock()
	}
}

func TestManySessionsAtOnceNeverMeet(t *testing.T) {
	s := startStub(t, stubCaps)
	y := s.pool(Config{MaxPerUser: 3, MaxTotal: 5, NoopAfter: time.Millisecond})
	var wg sync.WaitGroup
	for n := range uint64(16) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(n, 1))
			for range 25 {
				visit(t, y, r)
			}
		})
	}
	wg.Wait()
	if y.places() != y.number() {
		t.Errorf("%d places, %d wait", y.places(), y.number())
	}
}

// visit is a session of somebody's.
func visit(t *testing.T, y *tally, r *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*testbed.Patience)
	defer cancel()
	u, pw, set := modelUsers[r.IntN(3)], modelPasswords[r.IntN(2)], modelSets[r.IntN(2)]
	a, err := y.Login(ctx, request(t, u, pw), Vouched)
	if err != nil {
		t.Error(err)
		return
	}
	defer a.Close()
	y.Pool.mu.Lock()
	if n := a.owner.user.count; len(y.conns) > 5 || y.total > 5 || n[forClient] > 2 || n[forUs] > 1 {
		t.Errorf("%d connections, of %s %d", len(y.conns), u, n)
	}
	y.Pool.mu.Unlock()
	c, err := a.Lease(ctx, set)
	if err != nil {
		t.Error(err)
		return
	}
	if got, want := who(t, c), fmt.Sprintf("%s %s (%s)", u, pw, set); got != want {
		t.Errorf("the lease of %q is %q", want, got)
	}
	if r.IntN(3) == 0 {
		if aux, err := a.Aux(ctx); err == nil {
			if got := who(t, aux); !strings.HasPrefix(got, u+" "+pw+" ") {
				t.Errorf("the gateway's own connection of %s is %q", u, got)
			}
			aux.Enabled = "CONDSTORE"
			a.ReturnAux(aux)
		} else if !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
	}
	switch r.IntN(4) {
	case 0:
		a.Destroy(c, metrics.DiscardPinned)
	case 1:
		_, _ = c.Write([]byte("A5 SEARCH ALL\r\n"))
		a.Return(c)
	default:
		c.Selected = true
		a.Return(c)
	}
}
