package relay

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/internal/testkit"
)

// newTestSession adds a session of one of many users, clients and addresses, made from n.
func newTestSession(t testing.TB, r *Registry, n int) *Session {
	user := testkit.Must(identity.Canonicalize(fmt.Sprintf("user%d", n%97), "example.org"))(t)
	return r.Add(Info{
		ID: fmt.Sprint(n), User: user, Backend: []string{"east", "west"}[n%2], Address: fmt.Sprintf("127.0.0.%d:993", n%5), Mode: event.ModeResume,
		Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(n % 7), byte(n)}), 1),
	}, OwnerFunc(func(Result) {}))
}

// Whatever is added, moved and ended, each query finds what a search of all sessions finds.
func TestEveryQueryFindsWhatASearchFinds(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		random := rand.New(rand.NewPCG(1, 2))
		var live []*Session
		for n := range 3000 {
			live = append(live, newTestSession(t, r, n))
			if s := live[random.IntN(len(live))]; n%3 == 0 {
				s.SetLocation([]string{"east", "west", "north"}[random.IntN(3)], fmt.Sprintf("127.0.0.%d:993", random.IntN(9)), "")
			}
			if i := random.IntN(len(live)); n%4 == 0 {
				live[i].Finish(Result{})
				live[i].SetLocation("north", "", "") // too late: it is gone
				live = slices.Delete(live, i, i+1)
			}
		}
		if r.Len() != len(live) {
			t.Errorf("%d sessions, want %d", r.Len(), len(live))
		}
		for range 500 {
			q := Query{}
			if random.IntN(2) == 0 {
				q.User = live[random.IntN(len(live))].Info().User
			}
			if random.IntN(2) == 0 {
				q.Backend = []string{"east", "west", "north", "south"}[random.IntN(4)]
			}
			if q.Backend != "" && random.IntN(2) == 0 {
				q.Address = fmt.Sprintf("127.0.0.%d:993", random.IntN(9))
			}
			if random.IntN(2) == 0 {
				q.Client = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(random.IntN(8)), byte(random.IntN(256))}), 8+random.IntN(25))
			}
			q.After = uint64(random.IntN(2) * random.IntN(3000))
			var want []*Session
			for _, s := range live {
				info := s.Info()
				if (q.User.IsZero() || info.User == q.User) && (q.Backend == "" || info.Backend == q.Backend) &&
					(q.Address == "" || info.Address == q.Address) && (!q.Client.IsValid() || q.Client.Contains(info.Client.Addr())) && s.Seq() > q.After {
					want = append(want, s)
				}
			}
			if got := r.Select(q); !slices.Equal(got, want) {
				t.Fatalf("%+v finds %d sessions, want %d", q, len(got), len(want))
			}
		}
		finishAll(r)
	})
}

func TestAnIPv4NetworkIsFoundInEitherForm(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, r *Registry) {
		r.Add(Info{Client: netip.MustParseAddrPort("[::ffff:192.0.2.7]:1")}, OwnerFunc(func(Result) {}))
		r.Add(Info{Client: netip.MustParseAddrPort("[2001:db8::7]:1")}, OwnerFunc(func(Result) {}))
		for network, want := range map[string]int{"192.0.2.0/24": 1, "::ffff:192.0.2.0/120": 1, "2001:db8::/32": 1, "0.0.0.0/0": 1, "192.0.3.0/24": 0} {
			if got := len(r.Select(Query{Client: netip.MustParsePrefix(network)})); got != want {
				t.Errorf("%s: %d", network, got)
			}
		}
		finishAll(r)
	})
}

func finishAll(r *Registry) {
	for _, s := range r.Sessions() {
		s.Finish(Result{})
	}
}

// BenchmarkIndex measures the heap of a session in the index, and the time of a query for one
// user's among 10,000.
func BenchmarkIndex(b *testing.B) {
	r := NewRegistry(Config{})
	defer r.Close()
	all := make([]*Session, 10_000)
	for n := range all {
		all[n] = newTestSession(b, r, n)
	}
	for _, s := range all {
		r.sessions.remove(s)
	}
	before := heapBytes()
	for _, s := range all {
		r.sessions.add(s)
	}
	size := float64(heapBytes()-before) / float64(len(all))
	for n := 0; b.Loop(); n++ {
		if len(r.Select(Query{User: all[n%len(all)].info.User})) == 0 {
			b.Fatal("not found")
		}
	}
	b.ReportMetric(size, "B/session")
	finishAll(r)
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
