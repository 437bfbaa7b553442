package mailbox

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"imapgate/internal/imap"
)

// parseUIDSet parses a set of UIDs.
func parseUIDSet(t testing.TB, set string) *UIDSet {
	t.Helper()
	u := new(UIDSet)
	if set == "" {
		return u
	}
	if err := u.AddText([]byte(set)); err != nil {
		t.Fatalf("set %q: %v", set, err)
	}
	return u
}

// newView returns a view with known UIDs and an unknown tail.
func newView(t testing.TB, known string, tail uint32) *View {
	t.Helper()
	u := parseUIDSet(t, known)
	v := &View{exists: u.Len()}
	if err := v.addUIDs(v.KnownCount()+1, u); err != nil {
		t.Fatal(err)
	}
	if err := v.setExists(u.Len() + tail); err != nil {
		t.Fatal(err)
	}
	return v
}

// String returns the known UIDs and the length of the tail.
func (v *View) String() string { return fmt.Sprintf("%s+%d", v.knownUIDs.String(), v.UnknownCount()) }

func TestViewAppliesServerResponses(t *testing.T) {
	expunge := func(n uint32) func(*View) error { return func(v *View) error { return v.expunge(n) } }
	setExists := func(n uint32) func(*View) error { return func(v *View) error { return v.setExists(n) } }
	vanish := func(set string) func(*View) error {
		return func(v *View) error { _, err := v.vanish([]byte(set)); return err }
	}
	addUIDs := func(set string) func(*View) error {
		return func(v *View) error { return v.addUIDs(v.KnownCount()+1, parseUIDSet(t, set)) }
	}
	addUID := func(n, uid uint32) func(*View) error {
		return func(v *View) error { v.addUID(n, uid); return nil }
	}
	for _, c := range []struct {
		name, known string
		tail        uint32
		step        func(*View) error
		want        string
		err         error
	}{
		{"first expunged", "3:6", 0, expunge(1), "4:6+0", nil},
		{"middle expunged", "3:6", 0, expunge(2), "3,5:6+0", nil},
		{"last expunged", "3:6", 0, expunge(4), "3:5+0", nil},
		{"only one expunged", "7", 0, expunge(1), "+0", nil},
		{"tail expunged", "3:6", 2, expunge(6), "3:6+1", nil},
		{"known expunged before a tail", "3:6", 2, expunge(4), "3:5+2", nil},
		{"number 0", "3:6", 2, expunge(0), "3:6+2", ErrRange},
		{"number too large", "3:6", 2, expunge(7), "3:6+2", ErrRange},
		{"grows", "3:6", 2, setExists(9), "3:6+5", nil},
		{"same EXISTS", "3:6", 2, setExists(6), "3:6+2", nil},
		{"decreases", "3:6", 2, setExists(5), "3:6+2", ErrExistsDecreased},
		{"vanished known", "3:6,9", 0, vanish("4,9"), "3,5:6+0", nil},
		{"vanished UIDs not in the view", "3:6,9", 0, vanish("1,7:8,10:20"), "3:6,9+0", nil},
		{"vanished across gaps", "3:6,9,11", 0, vanish("5:10"), "3:4,11+0", nil},
		{"vanished from the tail", "3:6", 3, vanish("2,6,8,10"), "3:5+1", nil},
		{"more vanished than the tail has", "3:6", 2, vanish("5,8:10"), "3:6+2", ErrRange},
		{"vanished malformed after a valid one", "3:6", 2, vanish("5,x"), "3:6+2", imap.ErrSet},
		{"vanished star", "3:6", 2, vanish("5:*"), "3:6+2", imap.ErrSet},
		{"all UIDs added", "3:6", 2, addUIDs("7,9"), "3:7,9+0", nil},
		{"some UIDs added", "3:6", 2, addUIDs("7"), "3:7+1", nil},
		{"some already known", "3:6", 2, func(v *View) error { return v.addUIDs(3, parseUIDSet(t, "5:7")) }, "3:7+1", nil},
		{"others already known", "3:6", 2, func(v *View) error { return v.addUIDs(3, parseUIDSet(t, "6:7")) }, "3:6+2", ErrUIDMismatch},
		{"too many", "3:6", 2, addUIDs("7:9"), "3:6+2", ErrUIDMismatch},
		{"UIDs below the floor", "3:6", 2, addUIDs("2,9"), "3:6+2", ErrUIDMismatch},
		{"nothing to add", "3:6", 0, addUIDs(""), "3:6+0", nil},
		{"UID of the next message", "3:6", 2, addUID(5, 9), "3:6,9+1", nil},
		{"UID of a message after the next", "3:6", 2, addUID(6, 9), "3:6+2", nil},
		{"UID of a known message", "3:6", 2, addUID(4, 9), "3:6+2", nil},
		{"UID below the floor", "3:6", 2, addUID(5, 6), "3:6+2", nil},
		{"UID of a message after the end", "3:6", 0, addUID(5, 9), "3:6+0", nil},
	} {
		v := newView(t, c.known, c.tail)
		err := c.step(v)
		if !errors.Is(err, c.err) || v.String() != c.want {
			t.Errorf("%s: %s, %v; want %s, %v", c.name, v, err, c.want, c.err)
		}
	}
}

func TestUIDsAreNotUsedTwice(t *testing.T) {
	v := newView(t, "3:6", 0)
	if err := v.expunge(4); err != nil {
		t.Fatal(err)
	}
	if err := v.setExists(4); err != nil {
		t.Fatal(err)
	}
	if err := v.addUIDs(v.KnownCount()+1, parseUIDSet(t, "6")); !errors.Is(err, ErrUIDMismatch) {
		t.Errorf("an expunged UID was accepted again: %v", err)
	}
	if removed, err := v.vanish([]byte("6")); removed != 0 || err != nil {
		t.Errorf("a message expunged earlier vanished from the tail: %d, %v", removed, err)
	}
	if err := v.addUIDs(v.KnownCount()+1, parseUIDSet(t, "7")); err != nil {
		t.Error(err)
	}
}

func TestNumbersAreTranslatedToUIDs(t *testing.T) {
	// Messages 1:6 are 2,3,5,7,8,11; 5 and 11 are not in the snapshot.
	v := newView(t, "2:3,5,7:8,11", 0)
	d, err := v.Diff(parseUIDSet(t, "2:3,7:8,20"), 21)
	if err != nil {
		t.Fatal(err)
	}
	tail := newView(t, "2:3,5", 2)
	for _, c := range []struct {
		view     *View
		diff     *Diff
		set      string
		want     string
		expunged bool
		err      error
	}{
		{v, nil, "1", "2", false, nil},
		{v, nil, "1:*", "2:11", false, nil},
		{v, nil, "*", "11", false, nil},
		{v, nil, "4,2:3,6", "7,3:5,11", false, nil},
		{v, nil, "7", "", false, ErrRange},
		{v, nil, "3:7", "", false, ErrRange},
		{v, nil, "9:*", "", false, ErrRange},
		{v, &d, "1:2,4:5", "2:3,7:8", false, nil},
		{v, &d, "1:2,3", "", true, nil},
		{v, &d, "2:4", "", true, nil},
		{v, &d, "*", "", true, nil},
		{v, &d, "*,7", "", false, ErrRange},
		{tail, nil, "2:3", "3:5", false, nil},
		{tail, nil, "3:4", "", false, ErrUnknownUID},
		{tail, nil, "*", "", false, ErrUnknownUID},
		{tail, nil, "6", "", false, ErrRange},
		{new(View), nil, "*", "", false, ErrRange},
	} {
		set, err := imap.ParseSet(c.set)
		if err != nil {
			t.Fatal(err)
		}
		uids, expunged, err := c.view.TranslateSet(set, c.diff)
		if uids.String() != c.want || expunged != c.expunged || !errors.Is(err, c.err) {
			t.Errorf("%s of %s: %s, expunged %t, %v", c.set, c.view, uids, expunged, err)
		}
	}
}

// model is a view as a plain list of UIDs; those of the first known messages are known.
type model struct {
	uids  []uint32
	known int
	last  uint32 // largest UID ever assigned
}

func (m *model) addMessage(r *rand.Rand) {
	gap := uint32(1)
	switch r.IntN(100) {
	case 0:
		gap = r.Uint32N(100_000) // another container of the bitmap
	case 1, 2, 3, 4, 5:
		gap = 1 + r.Uint32N(5)
	}
	m.last += max(gap, 1)
	m.uids = append(m.uids, m.last)
}

func (m *model) expunge(i int) {
	m.uids = slices.Delete(m.uids, i, i+1)
	if i < m.known {
		m.known--
	}
}

// step applies the same random change to the model and the view.
func (m *model) step(t *testing.T, r *rand.Rand, v *View) {
	var err error
	switch n := len(m.uids); r.IntN(8) {
	case 0, 1:
		for range r.IntN(20) {
			m.addMessage(r)
		}
		err = v.setExists(uint32(len(m.uids)))
	case 2, 3:
		if n > 0 {
			i := r.IntN(n)
			m.expunge(i)
			err = v.expunge(uint32(i + 1))
		}
	case 4:
		set := new(UIDSet)
		for i := n - 1; i >= 0; i-- {
			if r.IntN(20) == 0 {
				set.Add(m.uids[i])
				m.expunge(i)
			}
		}
		if set.Len() > 0 {
			_, err = v.vanish([]byte(set.String()))
		}
	case 5:
		tail := new(UIDSet)
		for _, uid := range m.uids[m.known:] {
			tail.Add(uid)
		}
		m.known = n
		err = v.addUIDs(v.KnownCount()+1, tail)
	case 6:
		if m.known < n {
			v.addUID(uint32(m.known+1), m.uids[m.known])
			m.known++
		}
	case 7:
		v.Compact()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *model) compare(t *testing.T, v *View) {
	t.Helper()
	if v.Exists() != uint32(len(m.uids)) || v.KnownCount() != uint32(m.known) {
		t.Fatalf("%d of %d messages known, want %d of %d", v.KnownCount(), v.Exists(), m.known, len(m.uids))
	}
	for i, want := range m.uids {
		uid, ok := v.UID(uint32(i + 1))
		n, back := v.Number(want)
		if isKnown := i < m.known; ok != isKnown || back != isKnown || ok && (uid != want || n != uint32(i+1)) {
			t.Fatalf("message %d is %d (%t), UID %d is %d (%t)", i+1, uid, ok, want, n, back)
		}
		if _, ok := v.Number(want - 1); ok && (i == 0 || m.uids[i-1] != want-1) {
			t.Fatalf("UID %d has a number", want-1)
		}
	}
}

func TestViewMatchesAModel(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 1))
		m, v := new(model), new(View)
		if seed%10 == 0 { // fills a container
			for range 70_000 {
				m.addMessage(r)
			}
		}
		v.exists = uint32(len(m.uids))
		for i := range 300 {
			m.step(t, r, v)
			if len(m.uids) < 1000 && i%10 == 0 || i%150 == 149 {
				m.compare(t, v)
			}
		}
	}
}

func TestInferUIDsOfTheTail(t *testing.T) {
	for _, c := range []struct {
		known string
		tail  uint32
		next  uint32
		want  string
	}{
		{"1:3", 2, 6, "1:5+0"},
		{"1:3", 2, 7, "1:3+2"}, // three UIDs for two messages
		{"1:3", 2, 5, "1:3+2"}, // too few UIDs: impossible
		{"1:3", 2, 0, "1:3+2"},
		{"2,5", 1, 7, "2,5:6+0"},
		{"1:3", 0, 9, "1:3+0"},
	} {
		v := newView(t, c.known, c.tail)
		if v.inferUIDs(c.next); v.String() != c.want {
			t.Errorf("%s and %d below %d: %s, want %s", c.known, c.tail, c.next, v, c.want)
		}
	}
}
