package view

import (
	"github.com/RoaringBitmap/roaring/v2"
)

// UIDSet is an ascending set of UIDs, such as the messages that one upstream
// connection has announced. The zero value is empty.
//
// Many mailboxes have no holes, or none behind a certain message. One run is
// therefore two numbers; only a second run makes a bitmap.
type UIDSet struct {
	bitmap *roaring.Bitmap // nil: the run of count UIDs that starts with first
	first  uint32          // only without bits
	count  uint32
}

// AddText adds what an ESEARCH ALL or a VANISHED names, such as "1:5,7,9:12".
// With an error the set may have grown by a part of it.
func (u *UIDSet) AddText(text []byte) error {
	defer u.recount()
	return eachRange(text, u.addRange)
}

// Add adds one UID. Zero and 4294967295 are none.
func (u *UIDSet) Add(uid uint32) {
	if uid == 0 || uid > maxUID || u.Contains(uid) {
		return
	}
	u.addRange(uid, uid)
	if u.bitmap != nil {
		u.recount()
	}
}

// Len is the number of UIDs in the set.
func (u *UIDSet) Len() uint32 { return u.count }

// Max is the largest UID of the set, 0 of none.
func (u *UIDSet) Max() uint32 {
	switch {
	case u.count == 0:
		return 0
	case u.bitmap == nil:
		return u.first + u.count - 1
	}
	return u.bitmap.Maximum()
}

// min is the smallest UID of the set, 0 of none.
func (u *UIDSet) min() uint32 {
	switch {
	case u.count == 0:
		return 0
	case u.bitmap == nil:
		return u.first
	}
	return u.bitmap.Minimum()
}

// Contains says whether uid is in the set.
func (u *UIDSet) Contains(uid uint32) bool {
	if u.bitmap == nil {
		return uid-u.first < u.count // wraps below first
	}
	return u.bitmap.Contains(uid)
}

// Below is the part of the set that is less than uid.
func (u *UIDSet) Below(uid uint32) *UIDSet {
	part := u.clone()
	part.removeRange(max(uid, 1), maxUID)
	return &part
}

// String is the set as IMAP writes it, empty of none.
func (u *UIDSet) String() string { return string(u.appendSet(nil)) }

// nth is the UID with i smaller ones before it; i < Len.
func (u *UIDSet) nth(i uint32) uint32 {
	if u.bitmap == nil {
		return u.first + i
	}
	uid, err := u.bitmap.Select(i)
	if err != nil {
		panic("view: more UIDs counted than there are")
	}
	return uid
}

// countRange is the number of UIDs from first to last.
func (u *UIDSet) countRange(first, last uint32) uint32 {
	if first > last || u.count == 0 {
		return 0
	}
	if u.bitmap != nil {
		return uint32(u.bitmap.CardinalityInRange(uint64(first), uint64(last)+1))
	}
	first, last = max(first, u.first), min(last, u.Max())
	if first > last {
		return 0
	}
	return last - first + 1
}

// runs yields the runs of the set, ascending.
func (u *UIDSet) runs(yield func(first, last uint32) bool) {
	if u.count == 0 {
		return
	}
	if u.bitmap == nil {
		yield(u.first, u.Max())
		return
	}
	var buf [256]uint32
	first, last := u.bitmap.Minimum(), u.bitmap.Minimum()
	many := u.bitmap.ManyIterator()
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

// addRange adds a range. It does not count in a bitmap: whoever calls it does, once.
func (u *UIDSet) addRange(first, last uint32) {
	switch {
	case u.bitmap != nil:
		addToBitmap(u.bitmap, first, last)
	case u.count == 0:
		u.first, u.count = first, last-first+1
	case first >= u.first && first <= u.first+u.count: // goes on where the run ends
		u.count = max(u.count, last-u.first+1)
	default:
		u.makeBitmap()
		addToBitmap(u.bitmap, first, last)
	}
}

// makeBitmap makes a bitmap of the one run.
func (u *UIDSet) makeBitmap() {
	bitmap := roaring.New()
	if u.count > 0 {
		addToBitmap(bitmap, u.first, u.Max())
	}
	u.bitmap, u.first = bitmap, 0
}

// recount counts after put.
func (u *UIDSet) recount() {
	if u.bitmap != nil {
		u.count = uint32(u.bitmap.GetCardinality())
	}
}

// minBulkRange is where one container of a bitmap (65536 UIDs) takes a range at once. It
// may copy itself for that, so that with short ranges it would be quadratic.
const minBulkRange = 128

// addToBitmap adds first to last, container by container.
func addToBitmap(bitmap *roaring.Bitmap, first, last uint32) {
	for {
		end := min(last, first|0xffff)
		if end-first >= minBulkRange {
			bitmap.AddRange(uint64(first), uint64(end)+1)
		} else {
			addFewToBitmap(bitmap, first, end)
		}
		if end == last {
			return
		}
		first = end + 1
	}
}

// addFewToBitmap adds one UID after the other, wide at most.
func addFewToBitmap(bitmap *roaring.Bitmap, first, last uint32) {
	var buf [minBulkRange]uint32
	n := 0
	for ; first <= last; first++ {
		buf[n] = first
		n++
	}
	bitmap.AddMany(buf[:n])
}

// removeRange takes the UIDs from first to last out and says how many there were.
func (u *UIDSet) removeRange(first, last uint32) uint32 {
	removed := u.countRange(first, last)
	switch {
	case removed == 0:
		return 0
	case removed == u.count:
		*u = UIDSet{}
		return removed
	case u.bitmap == nil && first <= u.first:
		u.first += removed
	case u.bitmap == nil && last >= u.Max(): // the count says it
	default:
		u.removeMiddle(first, last)
	}
	u.count -= removed
	return removed
}

// removeMiddle takes a range out of the middle.
func (u *UIDSet) removeMiddle(first, last uint32) {
	if u.bitmap == nil {
		u.makeBitmap()
	}
	if first == last {
		u.bitmap.Remove(first) // unlike RemoveRange it keeps the container small
	} else {
		u.bitmap.RemoveRange(uint64(first), uint64(last)+1)
	}
}

// addAll adds all of o.
func (u *UIDSet) addAll(other *UIDSet) {
	switch {
	case other.count == 0:
		return
	case other.bitmap == nil:
		u.addRange(other.first, other.Max())
	default:
		if u.bitmap == nil {
			u.makeBitmap()
		}
		u.bitmap.Or(other.bitmap)
	}
	u.recount()
}

// countShared is the number of UIDs in both.
func (u *UIDSet) countShared(other *UIDSet) uint32 {
	switch {
	case u.count == 0 || other.count == 0:
		return 0
	case u.bitmap == nil:
		return other.countRange(u.first, u.Max())
	case other.bitmap == nil:
		return u.countRange(other.first, other.Max())
	}
	return uint32(u.bitmap.AndCardinality(other.bitmap))
}

// difference is what u has and o has not.
func (u *UIDSet) difference(other *UIDSet) UIDSet {
	rest := u.clone()
	switch {
	case other.count == 0:
	case other.bitmap == nil:
		rest.removeRange(other.first, other.Max())
	default:
		if rest.bitmap == nil {
			rest.makeBitmap()
		}
		rest.bitmap.AndNot(other.bitmap)
		rest.recount()
	}
	rest.compact()
	return rest
}

// clone is a copy that shares nothing with u.
func (u *UIDSet) clone() UIDSet {
	c := *u
	if u.bitmap != nil {
		c.bitmap = u.bitmap.Clone()
	}
	return c
}

// compact holds the set in as little memory as it needs. A bitmap becomes a copy,
// without what appending left over.
func (u *UIDSet) compact() {
	switch {
	case u.bitmap == nil:
	case u.count == 0:
		*u = UIDSet{}
	case u.Max()-u.min()+1 == u.count:
		*u = UIDSet{first: u.min(), count: u.count}
	default:
		u.bitmap.RunOptimize()
		u.bitmap = u.bitmap.Clone()
	}
}
