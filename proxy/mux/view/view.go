// Package view holds what a client has been told of its selected mailbox: which
// message numbers there are and which UIDs they have. It tells what the client
// has yet to hear before its view is that of another connection to the mailbox.
//
// It knows neither sockets nor commands nor flags, and not when an EXPUNGE may be
// sent. A View has no locks; it belongs to the session that asks.
//
// Message numbers run from 1 to Exists. The UIDs of a first part are known; the
// rest is the unknown tail, because EXISTS announces messages without their UIDs.
package view

import (
	"errors"

	"imapgate/internal/imap"
)

var (
	// ErrExistsDecreased is returned for an EXISTS below the last (RFC 9051 §7.4.1: only
	// EXPUNGE and VANISHED take messages away).
	ErrExistsDecreased = errors.New("EXISTS shrank")
	// ErrRange is returned for messages that the view does not have.
	ErrRange = errors.New("no such message number")
	// ErrUnknownUID is returned for messages of the unknown tail.
	ErrUnknownUID = errors.New("UID of the message is not known")
	// ErrUIDMismatch is returned for UIDs that are not those of the unknown tail.
	ErrUIDMismatch = errors.New("UIDs do not match the messages announced")
	// ErrInconsistent is returned for a snapshot that no later state of the mailbox
	// can be: it has an old message that the client was told is not there.
	ErrInconsistent = errors.New("mailbox is not the one selected before")
)

// View is a client's view of a mailbox. The zero value is an empty mailbox.
type View struct {
	knownUIDs UIDSet
	exists    uint32 // known.Len(), and the unknown tail
	// The UIDs of the tail and of all messages to come are above floor. Expunging
	// the last message does not lower it, because UIDs are not used twice.
	uidFloor uint32
	uidNext  uint32 // what messages that come have at least, once the tail is known
}

// Reset is a new selection of a mailbox with that many messages.
func (v *View) Reset(exists uint32) { *v = View{exists: exists} }

// SetUIDNext notes the UIDNEXT that came with the present Exists: messages to come have
// at least that UID. With it a tail is recognized when the last UIDs are unused.
func (v *View) SetUIDNext(uidNext uint32) {
	v.uidNext = uidNext
	v.raiseFloor()
}

// raiseFloor heeds next: with all messages known, whatever comes is new.
func (v *View) raiseFloor() {
	if v.UnknownCount() == 0 && v.uidNext > 0 {
		v.uidFloor = max(v.uidFloor, v.uidNext-1)
	}
}

// Exists is the number of messages.
func (v *View) Exists() uint32 { return v.exists }

// KnownCount is the number of messages with known UIDs, the first ones.
func (v *View) KnownCount() uint32 { return v.knownUIDs.Len() }

// UnknownCount is the number of messages in the unknown tail.
func (v *View) UnknownCount() uint32 { return v.exists - v.knownUIDs.Len() }

// MaxUID is the largest known UID, 0 of none.
func (v *View) MaxUID() uint32 { return v.knownUIDs.Max() }

// UID is the UID of message n, if it is known.
func (v *View) UID(n uint32) (uint32, bool) {
	if n == 0 || n > v.KnownCount() {
		return 0, false
	}
	return v.knownUIDs.nth(n - 1), true
}

// Number is the message number of a known UID.
func (v *View) Number(uid uint32) (uint32, bool) {
	if !v.knownUIDs.Contains(uid) {
		return 0, false
	}
	return v.knownUIDs.countRange(1, uid), true
}

// SetExists is "* n EXISTS".
func (v *View) SetExists(exists uint32) error {
	if exists < v.exists {
		return ErrExistsDecreased
	}
	v.exists = exists
	return nil
}

// Expunge is "* n EXPUNGE". In the unknown tail it takes away one of the messages
// that nothing is known of.
func (v *View) Expunge(n uint32) error {
	if n == 0 || n > v.exists {
		return ErrRange
	}
	if uid, ok := v.UID(n); ok {
		v.knownUIDs.removeRange(uid, uid)
	}
	v.exists--
	return nil
}

// Vanish is "* VANISHED set" without EARLIER. It says how many messages went.
//
// UIDs that the view has not are passed over, as by every client, except above the
// floor while there is an unknown tail: VANISHED names nothing but messages that
// this connection has announced (RFC 7162 §3.2.10), so those are in the tail and
// shorten it. More of them than it has are ErrRange, and nothing changes.
func (v *View) Vanish(set []byte) (uint32, error) {
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

// AddUIDs gives messages of the unknown tail their UIDs: u is those of the messages
// from number first on, up to some. The first of them may have become known since
// somebody asked, and there may be more messages now.
func (v *View) AddUIDs(first uint32, u *UIDSet) error {
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

// InferUIDs notes that the messages of the unknown tail have UIDs below uidNext (0:
// that is not known). Where there are only as many UIDs, they are theirs, also of
// those that are gone by now.
func (v *View) InferUIDs(uidNext uint32) {
	k := v.UnknownCount()
	if k == 0 || uidNext <= v.uidFloor || uidNext-1-v.uidFloor != k {
		return
	}
	v.knownUIDs.addRange(v.uidFloor+1, v.uidFloor+k)
	v.knownUIDs.recount()
	v.uidFloor += k
	v.raiseFloor()
}

// AddUID takes a UID that came along in a FETCH, if it is that of the first
// message in the unknown tail.
func (v *View) AddUID(n, uid uint32) {
	if n != v.KnownCount()+1 || n > v.exists || uid <= v.uidFloor || uid > maxUID {
		return
	}
	v.knownUIDs.Add(uid)
	v.uidFloor = uid
	v.raiseFloor()
}

// Compact gives back what expunging and learning left over; for a session that is
// about to rest.
func (v *View) Compact() { v.knownUIDs.compact() }

// TranslateSet is the set of UIDs that addresses, on a connection with the snapshot of d,
// the messages which the client means by the numbers of set. Where one of them is
// a ghost of d it says so instead. d may be nil: then the view is the snapshot.
//
// A range of numbers becomes one range of UIDs. It spans the holes in between: what
// the snapshot has there, the view has as well.
func (v *View) TranslateSet(set imap.Set, d *Diff) (uids imap.Set, expunged bool, err error) {
	uids = make(imap.Set, 0, len(set))
	for _, r := range set {
		first, last := v.resolveStar(r.First), v.resolveStar(r.Last)
		first, last = min(first, last), max(first, last) // "5:*" of four
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

func (v *View) resolveStar(n uint32) uint32 {
	if n == imap.Star {
		return v.exists
	}
	return n
}
