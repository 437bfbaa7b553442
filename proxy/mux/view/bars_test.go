package view

import (
	"math/rand/v2"
	"runtime"
	"testing"
)

// holed makes n UIDs with a fifth of the space unused at random.
func holed(n uint32) *UIDs {
	r := rand.New(rand.NewPCG(1, 2))
	u := new(UIDs)
	u.spread()
	for uid := uint32(1); n > 0; uid++ {
		if r.IntN(5) > 0 {
			u.put(uid, uid)
			n--
		}
	}
	u.recount()
	return u
}

// resting makes a view with all of u known.
func resting(tb testing.TB, u *UIDs) *View {
	v := new(View)
	v.Reset(u.Len())
	if err := v.Learn(v.Known()+1, u); err != nil {
		tb.Fatal(err)
	}
	v.Compact()
	return v
}

// grown makes the same view as messages arrive one by one.
func grown(tb testing.TB, u *UIDs) *View {
	v := new(View)
	for n := uint32(1); n <= u.Len(); n++ {
		if err := v.Grow(n); err != nil {
			tb.Fatal(err)
		}
		v.LearnOne(n, u.at(n-1))
	}
	v.Compact()
	return v
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestViewAtRestIsSmall(t *testing.T) {
	for _, c := range []struct {
		name string
		view func(testing.TB, *UIDs) *View
		uids *UIDs
		most uint64
	}{
		{"100,000 messages without holes", resting, of(t, "1:100000"), 200},
		{"100,000 messages with a fifth of the UIDs unused", resting, holed(100_000), 24 << 10},
		{"1,000 messages with a fifth of the UIDs unused", resting, holed(1000), 1200},
		{"2,600 messages, every other UID unused, heard of one by one", grown, half(of(t, "1:5200")), 5700},
	} {
		views := make([]*View, 100)
		before := heap()
		for i := range views {
			views[i] = c.view(t, c.uids)
		}
		each := (heap() - before) / uint64(len(views))
		runtime.KeepAlive(views)
		t.Logf("%s: %d bytes", c.name, each)
		if each > c.most {
			t.Errorf("%s: %d bytes, want %d at most", c.name, each, c.most)
		}
	}
}

func BenchmarkUID(b *testing.B) {
	v := resting(b, holed(100_000))
	for i := uint32(0); b.Loop(); i += 7919 {
		if _, ok := v.UID(i%100_000 + 1); !ok {
			b.Fatal(i)
		}
	}
}

func BenchmarkNumber(b *testing.B) {
	v := resting(b, holed(100_000))
	for i := uint32(0); b.Loop(); i += 7919 {
		v.Number(i%125_000 + 1)
	}
}

// One operation expunges all of a million messages.
func BenchmarkExpungeMillion(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	orders := []struct {
		name string
		pick func(left uint32) uint32
	}{
		{"first", func(uint32) uint32 { return 1 }},
		{"last", func(left uint32) uint32 { return left }},
		{"random", func(left uint32) uint32 { return r.Uint32N(left) + 1 }},
	}
	for _, order := range orders {
		for name, u := range map[string]*UIDs{"run": of(b, "1:1000000"), "holes": holed(1_000_000)} {
			b.Run(order.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					v := resting(b, u)
					for left := v.Exists(); left > 0; left-- {
						if err := v.Expunge(order.pick(left)); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func BenchmarkAddSet(b *testing.B) {
	text := []byte(holed(100_000).String())
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if err := new(UIDs).AddSet(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLearnTail(b *testing.B) {
	u := holed(100_000)
	for b.Loop() {
		resting(b, u)
	}
}

// half is every other message of u.
func half(u *UIDs) *UIDs {
	h := new(UIDs)
	for i := uint32(0); i < u.Len(); i += 2 {
		uid := u.at(i)
		h.put(uid, uid)
	}
	h.recount()
	return h
}

func BenchmarkDiff(b *testing.B) {
	all := holed(200_000)
	for name, now := range map[string]*UIDs{"same": all, "100000 ghosts": half(all)} {
		b.Run(name, func(b *testing.B) {
			v := resting(b, all)
			for b.Loop() {
				if _, err := v.Diff(now, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendHundredThousandGhosts(b *testing.B) {
	all := holed(200_000)
	v := resting(b, all)
	d, err := v.Diff(half(all), 0)
	if err != nil || d.Ghosts() != 100_000 {
		b.Fatal(d.Ghosts(), err)
	}
	b.Run("expunges", func(b *testing.B) {
		for b.Loop() {
			d.AppendExpunges(nil)
		}
	})
	b.Run("vanished", func(b *testing.B) {
		for b.Loop() {
			d.AppendVanished(nil)
		}
	})
}
