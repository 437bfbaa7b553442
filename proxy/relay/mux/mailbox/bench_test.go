package mailbox

import (
	"math/rand/v2"
	"runtime"
	"testing"
)

// newSparseSet returns a set of n UIDs with a random fifth of the UIDs unused.
func newSparseSet(n uint32) *UIDSet {
	r := rand.New(rand.NewPCG(1, 2))
	u := new(UIDSet)
	u.makeBitmap()
	for uid := uint32(1); n > 0; uid++ {
		if r.IntN(5) > 0 {
			u.addRange(uid, uid)
			n--
		}
	}
	u.recount()
	return u
}

// newCompactView returns a view in which all UIDs of u are known.
func newCompactView(tb testing.TB, u *UIDSet) *View {
	v := &View{exists: u.Len()}
	if err := v.addUIDs(v.KnownCount()+1, u); err != nil {
		tb.Fatal(err)
	}
	v.Compact()
	return v
}

// newIncrementalView returns the same view built from messages that arrive one by one.
func newIncrementalView(tb testing.TB, u *UIDSet) *View {
	v := new(View)
	for n := uint32(1); n <= u.Len(); n++ {
		if err := v.setExists(n); err != nil {
			tb.Fatal(err)
		}
		v.addUID(n, u.nth(n-1))
	}
	v.Compact()
	return v
}

func heapBytes() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func TestCompactViewIsSmall(t *testing.T) {
	for _, c := range []struct {
		name string
		view func(testing.TB, *UIDSet) *View
		uids *UIDSet
		most uint64
	}{
		{"100,000 messages without holes", newCompactView, parseUIDSet(t, "1:100000"), 200},
		{"100,000 messages with a fifth of the UIDs unused", newCompactView, newSparseSet(100_000), 24 << 10},
		{"1,000 messages with a fifth of the UIDs unused", newCompactView, newSparseSet(1000), 1200},
		{"2,600 messages, every other UID unused, announced one by one", newIncrementalView, everyOther(parseUIDSet(t, "1:5200")), 5700},
	} {
		views := make([]*View, 100)
		before := heapBytes()
		for i := range views {
			views[i] = c.view(t, c.uids)
		}
		each := (heapBytes() - before) / uint64(len(views))
		runtime.KeepAlive(views)
		t.Logf("%s: %d bytes", c.name, each)
		if each > c.most {
			t.Errorf("%s: %d bytes, want %d at most", c.name, each, c.most)
		}
	}
}

func BenchmarkUID(b *testing.B) {
	v := newCompactView(b, newSparseSet(100_000))
	for i := uint32(0); b.Loop(); i += 7919 {
		if _, ok := v.UID(i%100_000 + 1); !ok {
			b.Fatal(i)
		}
	}
}

func BenchmarkNumber(b *testing.B) {
	v := newCompactView(b, newSparseSet(100_000))
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
		for name, u := range map[string]*UIDSet{"run": parseUIDSet(b, "1:1000000"), "holes": newSparseSet(1_000_000)} {
			b.Run(order.name+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					v := newCompactView(b, u)
					for left := v.Exists(); left > 0; left-- {
						if err := v.expunge(order.pick(left)); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
		}
	}
}

func BenchmarkAddSet(b *testing.B) {
	text := []byte(newSparseSet(100_000).String())
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if err := new(UIDSet).AddText(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAddUIDs(b *testing.B) {
	u := newSparseSet(100_000)
	for b.Loop() {
		newCompactView(b, u)
	}
}

// everyOther returns every other UID of u.
func everyOther(u *UIDSet) *UIDSet {
	h := new(UIDSet)
	for i := uint32(0); i < u.Len(); i += 2 {
		uid := u.nth(i)
		h.addRange(uid, uid)
	}
	h.recount()
	return h
}

func BenchmarkDiff(b *testing.B) {
	all := newSparseSet(200_000)
	for name, snapshot := range map[string]*UIDSet{"same": all, "100000 expunged": everyOther(all)} {
		b.Run(name, func(b *testing.B) {
			v := newCompactView(b, all)
			for b.Loop() {
				if _, err := v.Diff(snapshot, 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendHundredThousandExpunges(b *testing.B) {
	all := newSparseSet(200_000)
	v := newCompactView(b, all)
	d, err := v.Diff(everyOther(all), 0)
	if err != nil || d.ExpungedCount() != 100_000 {
		b.Fatal(d.ExpungedCount(), err)
	}
	b.Run("expunges", func(b *testing.B) {
		for b.Loop() {
			d.appendExpunges(nil)
		}
	})
	b.Run("vanished", func(b *testing.B) {
		for b.Loop() {
			d.appendVanished(nil)
		}
	})
}
