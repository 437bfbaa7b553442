package mailbox

import (
	"bytes"
	"strconv"

	"github.com/RoaringBitmap/roaring/v2"

	"imapgate/internal/imap"
)

// maxUID is the largest UID. The number above it stands for * in an imap.Set; excluding it also
// keeps uid+1 from overflowing.
const maxUID = imap.Star - 1

// maxSetText bounds the text of one set, in bytes. The sparsest mailbox of a million messages
// needs 11 MB.
const maxSetText = 16 << 20

// UIDSet is an ascending set of UIDs, such as the messages that an upstream connection has
// announced. The zero value is empty.
//
// Many mailboxes have no gaps, or none after some message. A single run is stored as two
// numbers; only a second run creates a bitmap.
type UIDSet struct {
	bitmap *roaring.Bitmap // nil: the run of count UIDs from first
	first  uint32          // used only without bitmap
	count  uint32
}

// AddText adds the UIDs of an ESEARCH ALL or VANISHED response, such as "1:5,7,9:12". On error
// the set may have grown by part of them.
func (u *UIDSet) AddText(text []byte) error {
	defer u.recount()
	return eachRange(text, u.addRange)
}

// Add adds one UID. It ignores 0 and 4294967295, which are not UIDs.
func (u *UIDSet) Add(uid uint32) {
	if uid == 0 || uid > maxUID || u.Contains(uid) {
		return
	}
	u.addRange(uid, uid)
	if u.bitmap != nil {
		u.recount()
	}
}

// Len returns the number of UIDs in the set.
func (u *UIDSet) Len() uint32 { return u.count }

// Max returns the largest UID of the set, 0 if it is empty.
func (u *UIDSet) Max() uint32 {
	switch {
	case u.count == 0:
		return 0
	case u.bitmap == nil:
		return u.first + u.count - 1
	}
	return u.bitmap.Maximum()
}

// min returns the smallest UID of the set, 0 if it is empty.
func (u *UIDSet) min() uint32 {
	switch {
	case u.count == 0:
		return 0
	case u.bitmap == nil:
		return u.first
	}
	return u.bitmap.Minimum()
}

// Contains reports whether uid is in the set.
func (u *UIDSet) Contains(uid uint32) bool {
	if u.bitmap == nil {
		return uid-u.first < u.count // wraps below first
	}
	return u.bitmap.Contains(uid)
}

// Below returns the UIDs less than uid.
func (u *UIDSet) Below(uid uint32) *UIDSet {
	part := u.clone()
	part.removeRange(max(uid, 1), maxUID)
	return &part
}

// String returns the set in IMAP syntax, "" if it is empty.
func (u *UIDSet) String() string { return string(u.appendSet(nil)) }

// nth returns the UID that has i smaller ones before it; i < Len.
func (u *UIDSet) nth(i uint32) uint32 {
	if u.bitmap == nil {
		return u.first + i
	}
	uid, err := u.bitmap.Select(i)
	if err != nil {
		panic("view: count exceeds the UIDs in the bitmap")
	}
	return uid
}

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

// runs yields the runs of the set in ascending order.
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

// addRange adds a range. With a bitmap it does not update count: the caller must call recount.
func (u *UIDSet) addRange(first, last uint32) {
	switch {
	case u.bitmap != nil:
		addToBitmap(u.bitmap, first, last)
	case u.count == 0:
		u.first, u.count = first, last-first+1
	case first >= u.first && first <= u.first+u.count: // overlaps or extends the run
		u.count = max(u.count, last-u.first+1)
	default:
		u.makeBitmap()
		addToBitmap(u.bitmap, first, last)
	}
}

// makeBitmap converts a single run to a bitmap.
func (u *UIDSet) makeBitmap() {
	if u.bitmap != nil {
		return
	}
	bitmap := roaring.New()
	if u.count > 0 {
		addToBitmap(bitmap, u.first, u.Max())
	}
	u.bitmap, u.first = bitmap, 0
}

// recount updates count after addRange.
func (u *UIDSet) recount() {
	if u.bitmap != nil {
		u.count = uint32(u.bitmap.GetCardinality())
	}
}

// minBulkRange is the smallest range added with AddRange to one container of a bitmap (65536
// UIDs). AddRange may copy the container, so many short ranges would take quadratic time.
const minBulkRange = 128

// addToBitmap adds first to last, one container at a time.
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

// addFewToBitmap adds at most minBulkRange UIDs, one by one.
func addFewToBitmap(bitmap *roaring.Bitmap, first, last uint32) {
	var buf [minBulkRange]uint32
	n := 0
	for ; first <= last; first++ {
		buf[n] = first
		n++
	}
	bitmap.AddMany(buf[:n])
}

// removeRange removes the UIDs from first to last and returns how many there were.
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
	case u.bitmap == nil && last >= u.Max(): // count is enough
	case first == last:
		u.makeBitmap()
		u.bitmap.Remove(first) // unlike RemoveRange, keeps the container small
	default:
		u.makeBitmap()
		u.bitmap.RemoveRange(uint64(first), uint64(last)+1)
	}
	u.count -= removed
	return removed
}

func (u *UIDSet) addAll(other *UIDSet) {
	switch {
	case other.count == 0:
		return
	case other.bitmap == nil:
		u.addRange(other.first, other.Max())
	default:
		u.makeBitmap()
		u.bitmap.Or(other.bitmap)
	}
	u.recount()
}

// countShared returns the number of UIDs in both sets.
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

func (u *UIDSet) difference(other *UIDSet) UIDSet {
	rest := u.clone()
	switch {
	case other.count == 0:
	case other.bitmap == nil:
		rest.removeRange(other.first, other.Max())
	default:
		rest.makeBitmap()
		rest.bitmap.AndNot(other.bitmap)
		rest.recount()
	}
	rest.compact()
	return rest
}

// clone returns a copy that shares no memory with u.
func (u *UIDSet) clone() UIDSet {
	c := *u
	if u.bitmap != nil {
		c.bitmap = u.bitmap.Clone()
	}
	return c
}

// compact minimizes the memory of the set. A bitmap is copied, without spare capacity.
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

// eachRange calls yield for every range of a UID set sent by a server, such as "1:5,7,12:9".
// The set has no *, because it does not depend on the mailbox's contents. Its total is at most
// the number of possible UIDs, which bounds the work.
func eachRange(text []byte, yield func(first, last uint32)) error {
	if len(text) > maxSetText {
		return imap.ErrSet
	}
	total := uint64(0)
	for more := true; more; {
		var item []byte
		item, text, more = bytes.Cut(text, []byte{','})
		a, b, isRange := bytes.Cut(item, []byte{':'})
		first, ok := parseUID(a)
		last := first
		if ok && isRange {
			last, ok = parseUID(b)
		}
		if !ok {
			return imap.ErrSet
		}
		first, last = min(first, last), max(first, last)
		if total += uint64(last-first) + 1; total > maxUID {
			return imap.ErrSet
		}
		yield(first, last)
	}
	return nil
}

// parseUID parses a nz-number (RFC 9051 §9).
func parseUID(digits []byte) (uint32, bool) {
	if len(digits) == 0 || len(digits) > 10 || digits[0] == '0' {
		return 0, false
	}
	n := uint64(0) // ten digits cannot overflow it
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return uint32(n), n <= maxUID
}

// appendSet appends the set in the grammar eachRange reads.
func (u *UIDSet) appendSet(dst []byte) []byte {
	for first, last := range u.runs {
		dst = strconv.AppendUint(dst, uint64(first), 10)
		if last > first {
			dst = append(dst, ':')
			dst = strconv.AppendUint(dst, uint64(last), 10)
		}
		dst = append(dst, ',')
	}
	return bytes.TrimSuffix(dst, []byte{','})
}
