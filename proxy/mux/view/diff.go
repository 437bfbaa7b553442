package view

import (
	"iter"
	"strconv"

	"imapgate/internal/imap"
)

// Diff is what separates a client's view from a snapshot of the mailbox: ghosts,
// which the client still has, and arrivals. It does not change.
type Diff struct {
	snapshot        *UIDSet
	uidNext         uint32
	expungedUIDs    UIDSet // ghosts with known UIDs
	expungedNumbers UIDSet // message numbers, in the view, of all ghosts
	expungedUnknown uint32
	newCount        uint32
	exists          uint32
}

// Diff compares the view with a snapshot taken on another connection, whose SELECT
// said uidNext (0: it did not). The snapshot must not change while the Diff is used.
//
// A snapshot with an old message that the view has not is ErrInconsistent.
//
// Of a tail of k messages the numbers are known and the UIDs are not. Messages
// become visible in the order of their UIDs. So when the first k UIDs above the
// floor are all in the snapshot, they are the tail: it could only have begun with a
// later one if one of them were gone. The view learns them here. Otherwise the
// messages of the tail are ghosts, and arrivals where they are still there.
func (v *View) Diff(snapshot *UIDSet, uidNext uint32) (Diff, error) {
	sharedCount := v.knownUIDs.countShared(snapshot)
	if snapshot.countRange(1, v.uidFloor) != sharedCount || uidNext > 0 && uidNext <= v.uidFloor {
		return Diff{}, ErrInconsistent
	}
	if k := v.UnknownCount(); k > 0 && k <= maxUID-v.uidFloor && snapshot.countRange(v.uidFloor+1, v.uidFloor+k) == k {
		v.knownUIDs.addRange(v.uidFloor+1, v.uidFloor+k)
		v.knownUIDs.recount()
		v.uidFloor += k
		sharedCount += k
	}
	d := Diff{snapshot: snapshot, uidNext: uidNext, expungedUnknown: v.UnknownCount(), newCount: snapshot.Len() - sharedCount, exists: snapshot.Len()}
	if sharedCount < v.KnownCount() {
		d.expungedUIDs = v.knownUIDs.difference(snapshot)
		d.expungedNumbers = v.knownUIDs.numbersOf(&d.expungedUIDs)
	}
	if d.expungedUnknown > 0 {
		d.expungedNumbers.addRange(v.KnownCount()+1, v.exists)
	}
	d.expungedNumbers.recount()
	return d, nil
}

// numbersOf is where in u the UIDs of part are, counted from 1.
func (u *UIDSet) numbersOf(subset *UIDSet) UIDSet {
	var numbers UIDSet
	n, from := uint32(0), uint32(1)
	for first, last := range subset.runs {
		n += u.countRange(from, first)
		numbers.addRange(n, n+last-first)
		n += last - first
		from = last + 1
	}
	return numbers
}

// ExpungedCount is the number of messages that the client has and the snapshot has not.
func (d *Diff) ExpungedCount() uint32 { return d.expungedNumbers.Len() }

// ExpungedUnknownCount is how many of the ghosts are of the unknown tail. No VANISHED can name them.
func (d *Diff) ExpungedUnknownCount() uint32 { return d.expungedUnknown }

// NewCount is the number of messages that the client has yet to hear of.
func (d *Diff) NewCount() uint32 { return d.newCount }

// Exists is the number of messages in the snapshot.
func (d *Diff) Exists() uint32 { return d.exists }

// IsExpunged says whether message n of the view is a ghost.
func (d *Diff) IsExpunged(n uint32) bool { return d.expungedNumbers.Contains(n) }

// ContainsExpunged says whether a message with one of these UIDs is a ghost.
func (d *Diff) ContainsExpunged(uids imap.Set) bool {
	for _, r := range uids {
		if d.expungedUIDs.countRange(r.First, r.Last) > 0 {
			return true
		}
	}
	return false
}

// ExpungedNumbers yields the message numbers of the ghosts from the last to the first, in
// which order each is right when it is sent.
func (d *Diff) ExpungedNumbers() iter.Seq[uint32] { return d.expungedNumbers.backward }

// AppendExpunges writes the ghosts as EXPUNGE responses, up to 22 bytes each. Whoever
// has to bound them writes Expunges in parts.
func (d *Diff) AppendExpunges(dst []byte) []byte {
	for n := range d.ExpungedNumbers() {
		dst = AppendExpunge(dst, n)
	}
	return dst
}

// AppendExpunge writes "* n EXPUNGE".
func AppendExpunge(dst []byte, n uint32) []byte {
	dst = append(dst, "* "...)
	dst = strconv.AppendUint(dst, uint64(n), 10)
	return append(dst, " EXPUNGE\r\n"...)
}

// AppendVanished writes the ghosts as one VANISHED response, nothing if there are
// none. It cannot name those of the unknown tail: with a Tail it is not enough.
func (d *Diff) AppendVanished(dst []byte) []byte {
	if d.expungedUIDs.Len() == 0 {
		return dst
	}
	dst = append(dst, "* VANISHED "...)
	dst = d.expungedUIDs.appendSet(dst)
	return append(dst, "\r\n"...)
}

// Apply makes the snapshot the view: the client has been told of the difference. The
// snapshot stays the caller's.
func (v *View) Apply(d *Diff) {
	v.knownUIDs = *d.snapshot
	v.knownUIDs.compact() // which makes it a copy
	v.exists = d.exists
	v.uidFloor = max(v.uidFloor, v.knownUIDs.Max())
	v.SetUIDNext(d.uidNext)
}

// backward yields the set descending.
func (u *UIDSet) backward(yield func(uint32) bool) {
	if u.bitmap == nil {
		for i := u.count; i > 0; i-- {
			if !yield(u.first + i - 1) {
				return
			}
		}
		return
	}
	for it := u.bitmap.ReverseIterator(); it.HasNext(); {
		if !yield(it.Next()) {
			return
		}
	}
}
