package mailbox

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"imapgate/internal/imap"
)

// isExpunged reports whether message n of the view is expunged.
func (d *Diff) isExpunged(n uint32) bool { return d.expungedNumbers.Contains(n) }

// appendExpunges appends the expunged messages as EXPUNGE responses.
func (d *Diff) appendExpunges(dst []byte) []byte {
	for n := range d.expungedNumbers.backward {
		dst = appendExpunge(dst, n)
	}
	return dst
}

func TestDiffHasExpungedAndNewMessages(t *testing.T) {
	for _, c := range []struct {
		name, known string
		tail        uint32
		now         string
		next        uint32
		expunges    string // message numbers
		vanished    string
		lost        uint32 // expunged messages of the tail
		arrived     uint32
	}{
		{"nothing", "1:5", 0, "1:5", 6, "", "", 0, 0},
		{"both empty", "", 0, "", 1, "", "", 0, 0},
		{"one expunged and one new", "1:2,5,7", 0, "1,5,7,9", 10, "2", "2", 0, 1},
		{"all expunged", "4:6", 0, "", 7, "3 2 1", "4:6", 0, 0},
		{"all new", "", 0, "4:6", 7, "", "", 0, 3},
		{"last expunged and one new", "4:6", 0, "4:5,9", 10, "3", "6", 0, 1},
		{"tail is the snapshot's", "4:6", 2, "4:8", 9, "", "", 0, 0},
		{"tail and more mail", "4:6", 2, "4:12", 13, "", "", 0, 4},
		{"tail and an expunged message", "4:6", 2, "4,6:8", 9, "2", "5", 0, 0},
		{"tail with one expunged", "4:6", 2, "4:6,8", 9, "5 4", "", 2, 1},
		{"tail with holes is not recognized", "4:6", 2, "4:6,8:9", 10, "5 4", "", 2, 2},
		{"tail of another", "4:6", 2, "4:7", 8, "5 4", "", 2, 1},
		{"tail of one and an expunged message", "4:6", 1, "4:5,8", 9, "4 3", "6", 1, 1},
		{"nothing known at all", "", 3, "1:3", 4, "", "", 0, 0},
		{"nothing known of a used mailbox", "", 3, "7:9", 10, "3 2 1", "", 3, 3},
		{"no UIDNEXT", "4:6", 2, "4:8", 0, "", "", 0, 0},
	} {
		v := newView(t, c.known, c.tail)
		snapshot := parseUIDSet(t, c.now)
		d, err := v.Diff(snapshot, c.next)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		expunges := strings.ReplaceAll(strings.ReplaceAll(string(d.appendExpunges(nil)), "* ", ""), " EXPUNGE\r\n", " ")
		vanished := strings.TrimSuffix(strings.TrimPrefix(string(d.appendVanished(nil)), "* VANISHED "), "\r\n")
		if strings.TrimSpace(expunges) != c.expunges || vanished != c.vanished || d.ExpungedUnknownCount() != c.lost || d.NewCount() != c.arrived {
			t.Errorf("%s: expunges %s, vanished %s, tail %d, new %d", c.name, expunges, vanished, d.ExpungedUnknownCount(), d.NewCount())
		}
		if d.Exists() != snapshot.Len() || v.Exists()-d.ExpungedCount()+d.NewCount() != d.Exists() {
			t.Errorf("%s: %d expunged of %d, %d new, %d exist", c.name, d.ExpungedCount(), v.Exists(), d.NewCount(), d.Exists())
		}
		v.apply(&d)
		if want := snapshot.String() + "+0"; v.String() != want {
			t.Errorf("%s: applied %s, want %s", c.name, v, want)
		}
	}
}

func TestResponsesAreWritten(t *testing.T) {
	v := newView(t, "1:2,5,7", 0)
	d, err := v.Diff(parseUIDSet(t, "5"), 8)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(d.appendExpunges([]byte("x"))); got != "x* 4 EXPUNGE\r\n* 2 EXPUNGE\r\n* 1 EXPUNGE\r\n" {
		t.Errorf("%q", got)
	}
	if got := string(d.appendVanished([]byte("x"))); got != "x* VANISHED 1:2,7\r\n" {
		t.Errorf("%q", got)
	}
}

func TestInconsistentSnapshotIsRejected(t *testing.T) {
	for _, c := range []struct {
		name, known, now string
		next             uint32
	}{
		{"a message between old ones", "4:6,9", "4:7,9", 10},
		{"a message before old ones", "4:6", "3:6", 7},
		{"all old messages expunged, one never seen", "4,6", "5", 7},
		{"UIDNEXT below a known UID", "4:6", "4:5", 6},
	} {
		if _, err := newView(t, c.known, 0).Diff(parseUIDSet(t, c.now), c.next); !errors.Is(err, ErrInconsistent) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	v := newView(t, "4:6", 0)
	if err := v.expunge(3); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Diff(parseUIDSet(t, "4:6"), 7); !errors.Is(err, ErrInconsistent) {
		t.Errorf("an expunged message came back: %v", err)
	}
}

func TestTailAfterUnusedUIDsIsRecognized(t *testing.T) {
	for _, order := range []string{"before", "after"} {
		v := &View{exists: 3}
		if order == "after" {
			v.setUIDNext(20) // UIDs 7 to 19 were used before
		}
		if err := v.addUIDs(v.KnownCount()+1, parseUIDSet(t, "4:6")); err != nil {
			t.Fatal(err)
		}
		if order == "before" {
			v.setUIDNext(20)
		}
		if err := v.setExists(4); err != nil {
			t.Fatal(err)
		}
		d, err := v.Diff(parseUIDSet(t, "4:6,20:21"), 22)
		if err != nil || d.ExpungedCount() != 0 || d.NewCount() != 1 || v.String() != "4:6,20+0" {
			t.Errorf("UIDNEXT set %s: %v, %d expunged, %d new, %s", order, err, d.ExpungedCount(), d.NewCount(), v)
		}
	}
}

func TestApplyMakesTheSnapshotTheView(t *testing.T) {
	v, snapshot := newView(t, "4:6,9", 0), parseUIDSet(t, "4:6,11,14")
	d, err := v.Diff(snapshot, 20)
	if err != nil {
		t.Fatal(err)
	}
	v.apply(&d)
	if err := v.expunge(1); err != nil {
		t.Fatal(err)
	}
	if snapshot.String() != "4:6,11,14" {
		t.Errorf("the caller's snapshot changed to %s", snapshot)
	}
	if err := v.setExists(5); err != nil {
		t.Fatal(err)
	}
	if d, err = v.Diff(parseUIDSet(t, "5:6,11,14,20"), 21); err != nil || d.ExpungedCount() != 0 || v.String() != "5:6,11,14,20+0" {
		t.Errorf("%d expunged, %v, %s", d.ExpungedCount(), err, v)
	}
}

func TestSnapshotAndRecognizedTailRaiseTheFloor(t *testing.T) {
	v := newView(t, "4:6", 2)
	d, err := v.Diff(parseUIDSet(t, "4:9"), 0)
	if err != nil || d.ExpungedUnknownCount() != 0 {
		t.Fatal(err, d.ExpungedUnknownCount())
	}
	if _, err := v.Diff(parseUIDSet(t, "4:6,9"), 8); !errors.Is(err, ErrInconsistent) {
		t.Errorf("UIDNEXT is a UID of the tail: %v", err)
	}
	v.apply(&d)
	if err := v.expunge(6); err != nil {
		t.Fatal(err)
	}
	if err := v.setExists(6); err != nil {
		t.Fatal(err)
	}
	if err := v.addUIDs(v.KnownCount()+1, parseUIDSet(t, "9")); !errors.Is(err, ErrUIDMismatch) {
		t.Errorf("a UID of the snapshot was reused: %v", err)
	}
}

// history is a mailbox generated by the fuzzer: all its messages in order. The first ones are
// in the view, and the first of those have known UIDs.
type history struct {
	uids        []uint32
	expunged    []bool // not in the snapshot
	known, tail int
}

func newHistory(messages []byte, known, tail uint16) *history {
	h := new(history)
	uid := uint32(0)
	for _, b := range messages {
		uid++
		if b&1 != 0 {
			uid += uint32(b >> 4 & 7)
		}
		if b == 0xff {
			uid += 100_000
		}
		run := 1
		if b&0xf == 0xe {
			run = int(b) * 16
		}
		for range run {
			h.uids = append(h.uids, uid)
			h.expunged = append(h.expunged, b&6 == 6)
			uid++
		}
	}
	h.known = int(known) % (len(h.uids) + 1)
	h.tail = int(tail) % (len(h.uids) - h.known + 1)
	return h
}

func (h *history) newView(t *testing.T) *View {
	known := new(UIDSet)
	for _, uid := range h.uids[:h.known] {
		known.Add(uid)
	}
	return newView(t, known.String(), uint32(h.tail))
}

func (h *history) snapshot() *UIDSet {
	snapshot := new(UIDSet)
	for i, uid := range h.uids {
		if !h.expunged[i] {
			snapshot.Add(uid)
		}
	}
	return snapshot
}

// expungedNumbers returns the message numbers of the view that are expunged.
func (h *history) expungedNumbers() (numbers []uint32) {
	for i := range h.known + h.tail {
		if h.expunged[i] {
			numbers = append(numbers, uint32(i+1))
		}
	}
	return numbers
}

// FuzzDiff verifies that a view after apply, and a client that receives the responses one by
// one, both equal the snapshot.
func FuzzDiff(f *testing.F) {
	f.Add([]byte("aaaabbbb\x00\x02\x04\x06\x06\xff\x06\x00"), uint16(6), uint16(3))
	f.Add([]byte{0, 0, 0, 0, 0, 0}, uint16(2), uint16(2))
	f.Add([]byte{0xfe, 0xee, 6, 0, 0xce, 0x8e, 6, 0xff, 0xae}, uint16(9000), uint16(9000))
	f.Fuzz(func(t *testing.T, messages []byte, known, tail uint16) {
		if len(messages) > 64 {
			t.Skip()
		}
		h := newHistory(messages, known, tail)
		snapshot, v := h.snapshot(), h.newView(t)
		d, err := v.Diff(snapshot, 0)
		if err != nil {
			t.Fatal(err)
		}
		if v.UnknownCount() == 0 {
			h.checkExact(t, v, &d)
		}
		h.checkReplay(t, snapshot, &d)
		v.apply(&d)
		if want := snapshot.String() + "+0"; v.String() != want {
			t.Fatalf("applied %s, want %s", v, want)
		}
	})
}

// checkExact verifies the UIDs of a recognized tail and the expunged messages of the diff.
func (h *history) checkExact(t *testing.T, v *View, d *Diff) {
	for i, want := range h.uids[:h.known+h.tail] {
		if uid, _ := v.UID(uint32(i + 1)); uid != want {
			t.Fatalf("message %d is %d, want %d", i+1, uid, want)
		}
	}
	expunged := slices.Collect(d.expungedNumbers.backward)
	slices.Reverse(expunged)
	if !slices.Equal(expunged, h.expungedNumbers()) {
		t.Fatalf("expunged %v, want %v", expunged, h.expungedNumbers())
	}
	for i, wantExpunged := range h.expunged[:h.known+h.tail] {
		n := uint32(i + 1)
		uids, isExpunged, err := v.TranslateSet(imap.Set{{First: n, Last: n}}, d)
		if err != nil || isExpunged != wantExpunged || d.isExpunged(n) != wantExpunged || !wantExpunged && uids[0].First != h.uids[i] {
			t.Fatalf("message %d is %v, expunged %t, %v", n, uids, isExpunged, err)
		}
	}
	other := *v
	other.knownUIDs = v.knownUIDs.clone()
	if line := d.appendVanished(nil); len(line) > 0 {
		set := line[len("* VANISHED ") : len(line)-len("\r\n")]
		if n, err := other.vanish(set); n != d.ExpungedCount() || err != nil {
			t.Fatalf("%s: %d, %v", line, n, err)
		}
	}
	if other.Exists()+d.NewCount() != d.Exists() {
		t.Fatalf("%d messages left, %d new, %d exist", other.Exists(), d.NewCount(), d.Exists())
	}
}

// checkReplay applies the responses of the diff to another client's equal view.
func (h *history) checkReplay(t *testing.T, snapshot *UIDSet, d *Diff) {
	v := h.newView(t)
	if d.ExpungedUnknownCount() == 0 { // the tail that Diff recognized
		for i, uid := range h.uids[h.known : h.known+h.tail] {
			v.addUID(uint32(h.known+i+1), uid)
		}
	}
	for n := range d.expungedNumbers.backward {
		if err := v.expunge(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.setExists(d.Exists()); err != nil {
		t.Fatal(err)
	}
	added := snapshot.difference(&v.knownUIDs)
	if added.Len() != d.NewCount() {
		t.Fatalf("%d new messages, want %d", added.Len(), d.NewCount())
	}
	if err := v.addUIDs(v.KnownCount()+1, &added); err != nil {
		t.Fatal(err)
	}
	if want := snapshot.String() + "+0"; v.String() != want {
		t.Fatalf("replayed %s, want %s", v, want)
	}
}
