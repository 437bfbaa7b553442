package limit

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"imapgate/internal/identity"
)

// attack describes an attack of some hours. Each address has a number of connections, and each
// connection guesses again after every denial.
type attack struct {
	name        string
	from        []netip.Addr
	connections int
	hours       int
}

func attackers() []attack {
	var network, spread []netip.Addr
	for i := range 256 {
		network = append(network, netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}))
	}
	for i := range 1000 {
		spread = append(spread, netip.AddrFrom4([4]byte{byte(20 + i/250), byte(i % 250), 7, 7}))
	}
	return []attack{{"1 address", network[:1], 5, 24}, {"a /24", network, 1, 24}, {"1,000 addresses", spread, 1, 6}}
}

// measureGuesses returns how many guesses were verified in each hour.
func measureGuesses(t *testing.T, a attack, users int) []int {
	t.Helper()
	hours := make([]atomic.Int64, a.hours+1)
	synctest.Test(t, func(t *testing.T) {
		cfg := defaultConfig()
		cfg.Connections.NewPerMinute = 0 // a client may keep its connection
		l := newLimiter(t, cfg, nil)
		names := make([]identity.User, users)
		for i := range names {
			names[i] = user(t, fmt.Sprint("target", i))
			if _, err := logIn(t, l, netip.AddrFrom4([4]byte{198, 51, byte(100 + i>>8), byte(i)}), names[i]); err != nil {
				t.Fatal(err)
			}
		}
		began, next := time.Now(), atomic.Int64{}
		var all sync.WaitGroup
		for _, addr := range a.from {
			for range a.connections {
				all.Go(func() {
					for time.Since(began) < time.Duration(a.hours)*time.Hour {
						n := next.Add(1)
						pause := 10 * time.Second // after a refusal
						if _, err := guess(t, l, addr, names[int(n)%len(names)], secret("%d", n)); err == nil {
							hours[min(int(time.Since(began)/time.Hour), a.hours)].Add(1)
							pause = l.cfg.Failures.Delay
						}
						time.Sleep(jitter(pause))
					}
				})
			}
		}
		all.Wait()
	})
	counts := make([]int, a.hours)
	for i := range counts {
		counts[i] = int(hours[i].Load())
	}
	return counts
}

// loginWaits counts the logins of good users, how many were delayed or refused, and has the
// longest delay.
type loginWaits struct {
	logins, waited, refused int
	longest                 time.Duration
}

func (w *loginWaits) add(d time.Duration, err error) {
	w.logins++
	if err != nil {
		w.refused++
	} else if d > 0 {
		w.waited++
		w.longest = max(w.longest, d)
	}
}

func (w *loginWaits) String() string {
	return fmt.Sprintf("%d logins, %d waited (longest %v), %d refused", w.logins, w.waited, w.longest.Round(time.Second), w.refused)
}

// measureNAT measures eight hours in which 500 users at one address log in every hour. One in
// 20 logins comes after a mistyped password. A device repeats an old password all the time.
func measureNAT(t *testing.T, known bool) (all, typos loginWaits) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg, nat := defaultConfig(), ip("192.0.2.7")
		cfg.Connections.NewPerMinute, cfg.Connections.PerAddress = 0, 0 // an operator sets higher ones for a NAT
		l := newLimiter(t, cfg, nil)
		if _, err := logIn(t, l, nat, user(t, "colleague")); err != nil {
			t.Fatal(err)
		}
		var work sync.WaitGroup
		var mu sync.Mutex
		began := time.Now()
		for i := range 500 {
			u := user(t, fmt.Sprint("good", i))
			if known {
				if _, err := logIn(t, l, nat, u); err != nil {
					t.Error(err)
				}
			}
			work.Go(func() {
				time.Sleep(time.Duration(i) * 7 * time.Second)
				for h := range 8 {
					mistyped := (i*7+h*13)%20 == 0
					if mistyped {
						_, _ = guess(t, l, nat, u, secret("typo %d", h))
						time.Sleep(4 * time.Second)
					}
					d, err := logIn(t, l, nat, u)
					mu.Lock()
					if all.add(d, err); mistyped {
						typos.add(d, err)
					}
					mu.Unlock()
					time.Sleep(time.Hour)
				}
			})
		}
		work.Go(func() {
			for time.Since(began) < 8*time.Hour {
				_, _ = guess(t, l, nat, user(t, "bad"), secret("old"))
				time.Sleep(10 * time.Second)
			}
		})
		work.Wait()
	})
	return all, typos
}

// measureVictim measures four hours in which 1,000 addresses guess at one user. In the last three
// of them the user logs in every ten minutes.
func measureVictim(t *testing.T, hasKnown bool, from netip.Addr) (w loginWaits) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l, victim, knownAddr := newLimiter(t, defaultConfig(), nil), user(t, "victim"), ip("198.51.100.7")
		if hasKnown {
			if _, err := logIn(t, l, knownAddr, victim); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		var all sync.WaitGroup
		for i, addr := range attackers()[2].from {
			all.Go(func() {
				time.Sleep(time.Duration(i) * time.Second / 10)
				for n := 0; time.Since(began) < 4*time.Hour; n++ {
					_, _ = guess(t, l, addr, victim, secret("%d %d", i, n))
					time.Sleep(jitter(30 * time.Second))
				}
			})
		}
		time.Sleep(time.Hour)
		for time.Since(began) < 4*time.Hour {
			d, err := attempt(t, l, from, victim, func(*Conn) error { return nil }) // without becoming known
			w.add(d, err)
			time.Sleep(10 * time.Minute)
		}
		all.Wait()
	})
	return w
}

// TestMeasurePenalties prints the tables of docs/decisions/0110.
func TestMeasurePenalties(t *testing.T) {
	if os.Getenv("IMAPGATE_MEASURE") != "1" {
		t.Skip("IMAPGATE_MEASURE is not set to 1")
	}
	var out strings.Builder
	for _, a := range attackers() {
		for _, users := range []int{1, 2000} {
			counts, sum := measureGuesses(t, a, users), 0
			for _, n := range counts {
				sum += n
			}
			fmt.Fprintf(&out, "%s at %d users: %d guesses in the first hour, %.1f an hour over %d hours\n", a.name, users, counts[0], float64(sum)/float64(a.hours), a.hours)
		}
	}
	for name, known := range map[string]bool{"known": true, "new": false} {
		all, typos := measureNAT(t, known)
		fmt.Fprintf(&out, "500 %s users behind a NAT: %v; after a typing error: %v\n", name, &all, &typos)
	}
	for name, from := range map[string]netip.Addr{"from its address": ip("198.51.100.7"), "from the same /24": ip("198.51.100.8"), "from a new network": ip("192.0.2.1")} {
		w := measureVictim(t, true, from)
		fmt.Fprintf(&out, "a victim %s: %v\n", name, &w)
	}
	w := measureVictim(t, false, ip("192.0.2.1"))
	fmt.Fprintf(&out, "a victim known nowhere: %v\n", &w)
	t.Log("\n" + out.String())
}
