// Package mailbox holds what a client knows of the mailbox it has selected: the data of
// SELECT, the messages with their numbers and UIDs, and up to which mod-sequence it has
// the flags. It computes what the client must be sent to bring it up to date with another
// connection to the mailbox.
//
// The package is pure: it knows no sockets, commands, goroutines or clocks, nor when an
// EXPUNGE may be sent. Its types have no locks; they belong to one session.
//
// Message numbers run from 1 to Exists. The UIDs of the first messages are known. The others
// are the unknown tail, because EXISTS announces messages without their UIDs.
package mailbox

import (
	"errors"

	"imapgate/internal/imap"
)

var (
	// ErrExistsDecreased is returned for an EXISTS below the previous one (RFC 9051 §7.4.1:
	// only EXPUNGE and VANISHED remove messages).
	ErrExistsDecreased = errors.New("EXISTS decreased")
	// ErrRange is returned for message numbers that are not in the view.
	ErrRange = errors.New("no such message number")
	// ErrUnknownUID is returned for messages of the unknown tail.
	ErrUnknownUID = errors.New("UID of the message is not known")
	// ErrUIDMismatch is returned for UIDs that cannot be those of the unknown tail.
	ErrUIDMismatch = errors.New("UIDs do not match the messages announced")
	// ErrInconsistent is returned for a snapshot that cannot be a later state of the mailbox:
	// it has an old message that the client's view lacks.
	ErrInconsistent = errors.New("mailbox is not the one selected before")
)

// View is a client's view of a mailbox. The zero value is an empty mailbox.
type View struct {
	knownUIDs UIDSet
	exists    uint32 // knownUIDs.Len() plus the unknown tail
	// The UIDs of the tail and of all later messages are above uidFloor. Expunging the last
	// message does not lower it, because UIDs are never reused.
	uidFloor uint32
	nextUID  uint32 // lowest UID of later messages, once the tail is known
}

// setUIDNext records the UIDNEXT that came with the current Exists: the lowest UID of later
// messages. With it a tail is recognized even if the last UIDs are unused.
func (v *View) setUIDNext(uidNext uint32) {
	v.nextUID = uidNext
	v.raiseFloor()
}

// raiseFloor applies nextUID: if all messages are known, later ones have at least that UID.
func (v *View) raiseFloor() {
	if v.UnknownCount() == 0 && v.nextUID > 0 {
		v.uidFloor = max(v.uidFloor, v.nextUID-1)
	}
}

// Exists returns the number of messages.
func (v *View) Exists() uint32 { return v.exists }

// KnownCount returns the number of messages with known UIDs, which are the first ones.
func (v *View) KnownCount() uint32 { return v.knownUIDs.Len() }

// UnknownCount returns the number of messages in the unknown tail.
func (v *View) UnknownCount() uint32 { return v.exists - v.knownUIDs.Len() }

// MaxUID returns the largest known UID, 0 if no UID is known.
func (v *View) MaxUID() uint32 { return v.knownUIDs.Max() }

// UID returns the UID of message n, if it is known.
func (v *View) UID(n uint32) (uint32, bool) {
	if n == 0 || n > v.KnownCount() {
		return 0, false
	}
	return v.knownUIDs.nth(n - 1), true
}

// Number returns the message number of a known UID.
func (v *View) Number(uid uint32) (uint32, bool) {
	if !v.knownUIDs.Contains(uid) {
		return 0, false
	}
	return v.knownUIDs.countRange(1, uid), true
}

// setExists applies "* n EXISTS".
func (v *View) setExists(exists uint32) error {
	if exists < v.exists {
		return ErrExistsDecreased
	}
	v.exists = exists
	return nil
}

// expunge applies "* n EXPUNGE". In the unknown tail it only shortens the tail.
func (v *View) expunge(n uint32) error {
	if n == 0 || n > v.exists {
		return ErrRange
	}
	if uid, ok := v.UID(n); ok {
		v.knownUIDs.removeRange(uid, uid)
	}
	v.exists--
	return nil
}

// vanish applies "* VANISHED set" without EARLIER and returns the number of messages removed.
//
// UIDs not in the view are ignored, as by every client. Exceptions are UIDs above the floor
// while there is an unknown tail: VANISHED names only messages that this connection has
// announced (RFC 7162 §3.2.10), so they are in the tail and shorten it. If they exceed the
// tail, vanish returns ErrRange and changes nothing.
func (v *View) vanish(set []byte) (uint32, error) {
	fromTail := uint64(0)
	err := eachRange(set, func(first, last uint32) {
		if last > v.uidFloor {
			fromTail += uint64(last-max(first, v.uidFloor+1)) + 1
		}
	})
	if err != nil {
		return 0, err
	}
	tail := v.UnknownCount()
	if tail == 0 {
		fromTail = 0
	}
	if fromTail > uint64(tail) {
		return 0, ErrRange
	}
	removed := uint32(fromTail)
	err = eachRange(set, func(first, last uint32) { removed += v.knownUIDs.removeRange(first, last) })
	v.exists -= removed
	return removed, err
}

// addUIDs records the UIDs of messages from number first on, up to some message of the unknown
// tail. Since the UIDs were requested, the first of them may have become known, and messages
// may have been added.
func (v *View) addUIDs(first uint32, u *UIDSet) error {
	knownCount := v.KnownCount() + 1 - first
	if first == 0 || first > v.KnownCount()+1 || u.countRange(1, v.uidFloor) != knownCount || u.Len()-knownCount > v.UnknownCount() {
		return ErrUIDMismatch
	}
	u.removeRange(1, v.uidFloor)
	v.knownUIDs.addAll(u)
	v.uidFloor = max(v.uidFloor, u.Max())
	v.raiseFloor()
	return nil
}

// inferUIDs derives the UIDs of the unknown tail, all of which are below uidNext (0: not
// known). If exactly as many UIDs are possible as the tail has messages, they are the tail's,
// even those of messages expunged since.
func (v *View) inferUIDs(uidNext uint32) {
	k := v.UnknownCount()
	if k == 0 || uidNext <= v.uidFloor || uidNext-1-v.uidFloor != k {
		return
	}
	v.knownUIDs.addRange(v.uidFloor+1, v.uidFloor+k)
	v.knownUIDs.recount()
	v.uidFloor += k
	v.raiseFloor()
}

// addUID records a UID from a FETCH response if it is that of the first message in the unknown
// tail.
func (v *View) addUID(n, uid uint32) {
	if n != v.KnownCount()+1 || n > v.exists || uid <= v.uidFloor || uid > maxUID {
		return
	}
	v.knownUIDs.Add(uid)
	v.uidFloor = uid
	v.raiseFloor()
}

// Compact frees spare memory. It is called before a session is parked.
func (v *View) Compact() { v.knownUIDs.compact() }

// TranslateSet translates message numbers of the client into UIDs, for use on a connection with
// the snapshot of d. expunged reports that one of the messages is expunged in d; uids is then
// nil. If d is nil, the view is the snapshot.
//
// A range of numbers becomes one range of UIDs, gaps included: the view has every message that
// the snapshot has in a gap.
func (v *View) TranslateSet(set imap.Set, d *Diff) (uids imap.Set, expunged bool, err error) {
	uids = make(imap.Set, 0, len(set))
	for _, r := range set {
		first, last := v.resolveStars(r)
		if first == 0 || last > v.exists {
			return nil, false, ErrRange
		}
		if d != nil && d.expungedNumbers.countRange(first, last) > 0 {
			expunged = true
			continue // the rest of the set can still be out of range
		}
		a, _ := v.UID(first)
		b, ok := v.UID(last)
		if !ok {
			return nil, false, ErrUnknownUID
		}
		uids = append(uids, imap.Range{First: a, Last: b})
	}
	if expunged {
		return nil, true, nil
	}
	return uids, false, nil
}

// resolveStars returns the numbers of a range: "5:*" with four messages is 4 to 5.
func (v *View) resolveStars(r imap.Range) (first, last uint32) {
	first, last = r.First, r.Last
	if first == imap.Star {
		first = v.exists
	}
	if last == imap.Star {
		last = v.exists
	}
	return min(first, last), max(first, last)
}

// CountNumbers returns how many messages a set of message numbers addresses. Duplicates may
// count twice; the result never exceeds Exists.
func (v *View) CountNumbers(set imap.Set) uint32 {
	n := uint64(0)
	for _, r := range set {
		first, last := v.resolveStars(r)
		if last = min(last, v.exists); 0 < first && first <= last {
			n += uint64(last-first) + 1
		}
	}
	return uint32(min(n, uint64(v.exists)))
}

// CountUIDs returns how many messages a set of UIDs addresses. For messages with unknown UIDs
// it is an upper bound, or 0 if "*" leaves no useful bound.
func (v *View) CountUIDs(set imap.Set) uint32 {
	n := uint64(0)
	for _, r := range set {
		switch tail := v.UnknownCount(); {
		case r.First == imap.Star:
			n++
		case tail == 0 && r.Last == imap.Star:
			n += uint64(v.knownUIDs.countRange(min(r.First, v.MaxUID()), v.MaxUID())) // "500:*" with smaller UIDs only: the last message
		case r.Last == imap.Star && r.First > v.uidFloor+1:
			return 0
		default:
			n += uint64(v.knownUIDs.countRange(r.First, r.Last))
			if r.Last > v.uidFloor {
				n += min(uint64(tail), uint64(r.Last-max(r.First, v.uidFloor+1))+1)
			}
		}
	}
	return uint32(min(n, uint64(v.exists)))
}
