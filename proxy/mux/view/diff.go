package view

import (
	"iter"
	"strconv"

	"imapgate/internal/imap"
)

// Diff is what separates a client's view from a snapshot of the mailbox: ghosts,
// which the client still has, and arrivals. It does not change.
type Diff struct {
	now     *UIDs
	next    uint32
	gone    UIDs // ghosts with known UIDs
	numbers UIDs // message numbers, in the view, of all ghosts
	tail    uint32
	arrived uint32
	exists  uint32
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
func (v *View) Diff(now *UIDs, uidNext uint32) (Diff, error) {
	shared := v.known.shared(now)
	if now.within(1, v.floor) != shared || uidNext > 0 && uidNext <= v.floor {
		return Diff{}, ErrInconsistent
	}
	if k := v.Unknown(); k > 0 && k <= maxUID-v.floor && now.within(v.floor+1, v.floor+k) == k {
		v.known.put(v.floor+1, v.floor+k)
		v.known.recount()
		v.floor += k
		shared += k
	}
	d := Diff{now: now, next: uidNext, tail: v.Unknown(), arrived: now.Len() - shared, exists: now.Len()}
	if shared < v.Known() {
		d.gone = v.known.without(now)
		d.numbers = v.known.numbers(&d.gone)
	}
	if d.tail > 0 {
		d.numbers.put(v.Known()+1, v.exists)
	}
	d.numbers.recount()
	return d, nil
}

// numbers is where in u the UIDs of part are, counted from 1.
func (u *UIDs) numbers(part *UIDs) UIDs {
	var numbers UIDs
	n, from := uint32(0), uint32(1)
	for first, last := range part.runs {
		n += u.within(from, first)
		numbers.put(n, n+last-first)
		n += last - first
		from = last + 1
	}
	return numbers
}

// Ghosts is the number of messages that the client has and the snapshot has not.
func (d *Diff) Ghosts() uint32 { return d.numbers.Len() }

// Tail is how many of the ghosts are of the unknown tail. No VANISHED can name them.
func (d *Diff) Tail() uint32 { return d.tail }

// Arrived is the number of messages that the client has yet to hear of.
func (d *Diff) Arrived() uint32 { return d.arrived }

// Exists is the number of messages in the snapshot.
func (d *Diff) Exists() uint32 { return d.exists }

// IsGhost says whether message n of the view is a ghost.
func (d *Diff) IsGhost(n uint32) bool { return d.numbers.Contains(n) }

// Takes says whether a message with one of these UIDs is a ghost.
func (d *Diff) Takes(uids imap.Set) bool {
	for _, r := range uids {
		if d.gone.within(r.First, r.Last) > 0 {
			return true
		}
	}
	return false
}

// Expunges yields the message numbers of the ghosts from the last to the first, in
// which order each is right when it is sent.
func (d *Diff) Expunges() iter.Seq[uint32] { return d.numbers.backward }

// AppendExpunges writes the ghosts as EXPUNGE responses, up to 22 bytes each. Whoever
// has to bound them writes Expunges in parts.
func (d *Diff) AppendExpunges(dst []byte) []byte {
	for n := range d.Expunges() {
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
	if d.gone.Len() == 0 {
		return dst
	}
	dst = append(dst, "* VANISHED "...)
	dst = d.gone.appendSet(dst)
	return append(dst, "\r\n"...)
}

// Apply makes the snapshot the view: the client has been told of the difference. The
// snapshot stays the caller's.
func (v *View) Apply(d *Diff) {
	v.known = *d.now
	v.known.compact() // which makes it a copy
	v.exists = d.exists
	v.floor = max(v.floor, v.known.Max())
	v.Floor(d.next)
}

// backward yields the set descending.
func (u *UIDs) backward(yield func(uint32) bool) {
	if u.bits == nil {
		for i := u.count; i > 0; i-- {
			if !yield(u.first + i - 1) {
				return
			}
		}
		return
	}
	for it := u.bits.ReverseIterator(); it.HasNext(); {
		if !yield(it.Next()) {
			return
		}
	}
}
