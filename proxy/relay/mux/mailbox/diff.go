package mailbox

import (
	"strconv"

	"imapgate/internal/imap"
)

// Diff is the difference between a client's view and a snapshot of the mailbox: expunged
// messages, which the client still has, and new ones. It is immutable.
type Diff struct {
	snapshot        *UIDSet
	uidNext         uint32
	expungedUIDs    UIDSet // expunged messages with known UIDs
	expungedNumbers UIDSet // view's message numbers of all expunged messages
	expungedUnknown uint32
	newCount        uint32
}

// Diff compares the view with a snapshot taken on another connection, whose SELECT reported
// uidNext (0: it did not). The snapshot must not change while the Diff is used. Diff returns
// ErrInconsistent if the snapshot has an old message that the view lacks.
//
// Of the unknown tail of k messages only the numbers are known. Messages become visible in the
// order of their UIDs. So if the first k UIDs above the floor are all in the snapshot, they are
// the tail: it could begin with a later UID only if one of them were expunged. Diff then adds
// them to the view. Otherwise the messages of the tail count as expunged, and as new if the
// snapshot still has them.
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
	d := Diff{snapshot: snapshot, uidNext: uidNext, expungedUnknown: v.UnknownCount(), newCount: snapshot.Len() - sharedCount}
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

// numbersOf returns the positions in u, from 1, of the UIDs in subset.
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

// ExpungedCount returns the number of messages that the client has and the snapshot lacks.
func (d *Diff) ExpungedCount() uint32 { return d.expungedNumbers.Len() }

// ExpungedUnknownCount returns how many expunged messages are in the unknown tail. VANISHED
// cannot name them.
func (d *Diff) ExpungedUnknownCount() uint32 { return d.expungedUnknown }

// NewCount returns the number of messages not yet announced to the client.
func (d *Diff) NewCount() uint32 { return d.newCount }

// Exists returns the number of messages in the snapshot.
func (d *Diff) Exists() uint32 { return d.snapshot.Len() }

// ContainsExpunged reports whether a message with one of these UIDs is expunged.
func (d *Diff) ContainsExpunged(uids imap.Set) bool {
	for _, r := range uids {
		if d.expungedUIDs.countRange(r.First, r.Last) > 0 {
			return true
		}
	}
	return false
}

// appendExpunge appends "* n EXPUNGE".
func appendExpunge(dst []byte, n uint32) []byte {
	dst = append(dst, "* "...)
	dst = strconv.AppendUint(dst, uint64(n), 10)
	return append(dst, " EXPUNGE\r\n"...)
}

// appendVanished appends the expunged messages as one VANISHED response, or nothing if there
// are none. It omits those of the unknown tail: see ExpungedUnknownCount.
func (d *Diff) appendVanished(dst []byte) []byte {
	if d.expungedUIDs.Len() == 0 {
		return dst
	}
	dst = append(dst, "* VANISHED "...)
	dst = d.expungedUIDs.appendSet(dst)
	return append(dst, "\r\n"...)
}

// apply makes the snapshot the view, once the difference was sent to the client. The caller
// keeps the snapshot.
func (v *View) apply(d *Diff) {
	v.knownUIDs = *d.snapshot
	v.knownUIDs.compact() // makes it a copy
	v.exists = d.Exists()
	v.uidFloor = max(v.uidFloor, v.knownUIDs.Max())
	v.setUIDNext(d.uidNext)
}

// backward yields the numbers in descending order: in this order each EXPUNGE is correct when
// it is sent.
func (u *UIDSet) backward(yield func(uint32) bool) {
	numbers := *u // shares a bitmap with u
	numbers.makeBitmap()
	for it := numbers.bitmap.ReverseIterator(); it.HasNext(); {
		if !yield(it.Next()) {
			return
		}
	}
}
