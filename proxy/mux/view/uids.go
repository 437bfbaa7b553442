package view

import (
	"github.com/RoaringBitmap/roaring/v2"
)

// UIDs is an ascending set of UIDs, such as the messages that one upstream
// connection has announced. The zero value is empty.
//
// Many mailboxes have no holes, or none behind a certain message. One run is
// therefore two numbers; only a second run makes a bitmap.
type UIDs struct {
	bits  *roaring.Bitmap // nil: the run of count UIDs that starts with first
	first uint32          // only without bits
	count uint32
}

// AddSet adds what an ESEARCH ALL or a VANISHED names, such as "1:5,7,9:12".
// With an error the set may have grown by a part of it.
func (u *UIDs) AddSet(text []byte) error {
	defer u.recount()
	return eachRange(text, u.put)
}

// Add adds one UID. Zero and 4294967295 are none.
func (u *UIDs) Add(uid uint32) {
	if uid == 0 || uid > maxUID || u.Contains(uid) {
		return
	}
	u.put(uid, uid)
	if u.bits != nil {
		u.recount()
	}
}

// Len is the number of UIDs in the set.
func (u *UIDs) Len() uint32 { return u.count }

// Max is the largest UID of the set, 0 of none.
func (u *UIDs) Max() uint32 {
	switch {
	case u.count == 0:
		return 0
	case u.bits == nil:
		return u.first + u.count - 1
	}
	return u.bits.Maximum()
}

// min is the smallest UID of the set, 0 of none.
func (u *UIDs) min() uint32 {
	switch {
	case u.count == 0:
		return 0
	case u.bits == nil:
		return u.first
	}
	return u.bits.Minimum()
}

// Contains says whether uid is in the set.
func (u *UIDs) Contains(uid uint32) bool {
	if u.bits == nil {
		return uid-u.first < u.count // wraps below first
	}
	return u.bits.Contains(uid)
}

// Below is the part of the set that is less than uid.
func (u *UIDs) Below(uid uint32) *UIDs {
	part := u.clone()
	part.remove(max(uid, 1), maxUID)
	return &part
}

// String is the set as IMAP writes it, empty of none.
func (u *UIDs) String() string { return string(u.appendSet(nil)) }

// at is the UID with i smaller ones before it; i < Len.
func (u *UIDs) at(i uint32) uint32 {
	if u.bits == nil {
		return u.first + i
	}
	uid, err := u.bits.Select(i)
	if err != nil {
		panic("view: more UIDs counted than there are")
	}
	return uid
}

// within is the number of UIDs from first to last.
func (u *UIDs) within(first, last uint32) uint32 {
	if first > last || u.count == 0 {
		return 0
	}
	if u.bits != nil {
		return uint32(u.bits.CardinalityInRange(uint64(first), uint64(last)+1))
	}
	first, last = max(first, u.first), min(last, u.Max())
	if first > last {
		return 0
	}
	return last - first + 1
}

// runs yields the runs of the set, ascending.
func (u *UIDs) runs(yield func(first, last uint32) bool) {
	if u.count == 0 {
		return
	}
	if u.bits == nil {
		yield(u.first, u.Max())
		return
	}
	var buf [256]uint32
	first, last := u.bits.Minimum(), u.bits.Minimum()
	many := u.bits.ManyIterator()
	for n := many.NextMany(buf[:]); n > 0; n = many.NextMany(buf[:]) {
		for _, uid := range buf[:n] {
			if uid > last+1 {
				if !yield(first, last) {
					return
				}
				first = uid
			}
			last = uid
		}
	}
	yield(first, last)
}

// put adds a range. It does not count in a bitmap: whoever calls it does, once.
func (u *UIDs) put(first, last uint32) {
	switch {
	case u.bits != nil:
		putBits(u.bits, first, last)
	case u.count == 0:
		u.first, u.count = first, last-first+1
	case first >= u.first && first <= u.first+u.count: // goes on where the run ends
		u.count = max(u.count, last-u.first+1)
	default:
		u.spread()
		putBits(u.bits, first, last)
	}
}

// spread makes a bitmap of the one run.
func (u *UIDs) spread() {
	bits := roaring.New()
	if u.count > 0 {
		putBits(bits, u.first, u.Max())
	}
	u.bits, u.first = bits, 0
}

// recount counts after put.
func (u *UIDs) recount() {
	if u.bits != nil {
		u.count = uint32(u.bits.GetCardinality())
	}
}

// wide is where one container of a bitmap (65536 UIDs) takes a range at once. It
// may copy itself for that, so that with short ranges it would be quadratic.
const wide = 128

// putBits adds first to last, container by container.
func putBits(bits *roaring.Bitmap, first, last uint32) {
	for {
		end := min(last, first|0xffff)
		if end-first >= wide {
			bits.AddRange(uint64(first), uint64(end)+1)
		} else {
			putFew(bits, first, end)
		}
		if end == last {
			return
		}
		first = end + 1
	}
}

// putFew adds one UID after the other, wide at most.
func putFew(bits *roaring.Bitmap, first, last uint32) {
	var buf [wide]uint32
	n := 0
	for ; first <= last; first++ {
		buf[n] = first
		n++
	}
	bits.AddMany(buf[:n])
}

// remove takes the UIDs from first to last out and says how many there were.
func (u *UIDs) remove(first, last uint32) uint32 {
	gone := u.within(first, last)
	switch {
	case gone == 0:
		return 0
	case gone == u.count:
		*u = UIDs{}
		return gone
	case u.bits == nil && first <= u.first:
		u.first += gone
	case u.bits == nil && last >= u.Max(): // the count says it
	default:
		u.cut(first, last)
	}
	u.count -= gone
	return gone
}

// cut takes a range out of the middle.
func (u *UIDs) cut(first, last uint32) {
	if u.bits == nil {
		u.spread()
	}
	if first == last {
		u.bits.Remove(first) // unlike RemoveRange it keeps the container small
	} else {
		u.bits.RemoveRange(uint64(first), uint64(last)+1)
	}
}

// join adds all of o.
func (u *UIDs) join(o *UIDs) {
	switch {
	case o.count == 0:
		return
	case o.bits == nil:
		u.put(o.first, o.Max())
	default:
		if u.bits == nil {
			u.spread()
		}
		u.bits.Or(o.bits)
	}
	u.recount()
}

// shared is the number of UIDs in both.
func (u *UIDs) shared(o *UIDs) uint32 {
	switch {
	case u.count == 0 || o.count == 0:
		return 0
	case u.bits == nil:
		return o.within(u.first, u.Max())
	case o.bits == nil:
		return u.within(o.first, o.Max())
	}
	return uint32(u.bits.AndCardinality(o.bits))
}

// without is what u has and o has not.
func (u *UIDs) without(o *UIDs) UIDs {
	rest := u.clone()
	switch {
	case o.count == 0:
	case o.bits == nil:
		rest.remove(o.first, o.Max())
	default:
		if rest.bits == nil {
			rest.spread()
		}
		rest.bits.AndNot(o.bits)
		rest.recount()
	}
	rest.compact()
	return rest
}

// clone is a copy that shares nothing with u.
func (u *UIDs) clone() UIDs {
	c := *u
	if u.bits != nil {
		c.bits = u.bits.Clone()
	}
	return c
}

// compact holds the set in as little memory as it needs. A bitmap becomes a copy,
// without what appending left over.
func (u *UIDs) compact() {
	switch {
	case u.bits == nil:
	case u.count == 0:
		*u = UIDs{}
	case u.Max()-u.min()+1 == u.count:
		*u = UIDs{first: u.min(), count: u.count}
	default:
		u.bits.RunOptimize()
		u.bits = u.bits.Clone()
	}
}
