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
	// ErrShrunk is returned for an EXISTS below the last (RFC 9051 §7.4.1: only
	// EXPUNGE and VANISHED take messages away).
	ErrShrunk = errors.New("EXISTS shrank")
	// ErrRange is returned for messages that the view does not have.
	ErrRange = errors.New("no such message number")
	// ErrUnknown is returned for messages of the unknown tail.
	ErrUnknown = errors.New("UID of the message is not known")
	// ErrMismatch is returned for UIDs that are not those of the unknown tail.
	ErrMismatch = errors.New("UIDs do not match the messages announced")
	// ErrInconsistent is returned for a snapshot that no later state of the mailbox
	// can be: it has an old message that the client was told is not there.
	ErrInconsistent = errors.New("mailbox is not the one selected before")
)

// View is a client's view of a mailbox. The zero value is an empty mailbox.
type View struct {
	known  UIDs
	exists uint32 // known.Len(), and the unknown tail
	// The UIDs of the tail and of all messages to come are above floor. Expunging
	// the last message does not lower it, because UIDs are not used twice.
	floor uint32
	next  uint32 // what messages that come have at least, once the tail is known
}

// Reset is a new selection of a mailbox with that many messages.
func (v *View) Reset(exists uint32) { *v = View{exists: exists} }

// Floor notes the UIDNEXT that came with the present Exists: messages to come have
// at least that UID. With it a tail is recognized when the last UIDs are unused.
func (v *View) Floor(uidNext uint32) {
	v.next = uidNext
	v.settle()
}

// settle heeds next: with all messages known, whatever comes is new.
func (v *View) settle() {
	if v.Unknown() == 0 && v.next > 0 {
		v.floor = max(v.floor, v.next-1)
	}
}

// Exists is the number of messages.
func (v *View) Exists() uint32 { return v.exists }

// Known is the number of messages with known UIDs, the first ones.
func (v *View) Known() uint32 { return v.known.Len() }

// Unknown is the number of messages in the unknown tail.
func (v *View) Unknown() uint32 { return v.exists - v.known.Len() }

// Max is the largest known UID, 0 of none.
func (v *View) Max() uint32 { return v.known.Max() }

// UID is the UID of message n, if it is known.
func (v *View) UID(n uint32) (uint32, bool) {
	if n == 0 || n > v.Known() {
		return 0, false
	}
	return v.known.at(n - 1), true
}

// Number is the message number of a known UID.
func (v *View) Number(uid uint32) (uint32, bool) {
	if !v.known.Contains(uid) {
		return 0, false
	}
	return v.known.within(1, uid), true
}

// Grow is "* n EXISTS".
func (v *View) Grow(exists uint32) error {
	if exists < v.exists {
		return ErrShrunk
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
		v.known.remove(uid, uid)
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
	above := uint64(0)
	err := eachRange(set, func(first, last uint32) {
		if last > v.floor {
			above += uint64(last-max(first, v.floor+1)) + 1
		}
	})
	if err != nil {
		return 0, err
	}
	tail := v.Unknown()
	if tail == 0 {
		above = 0
	}
	if above > uint64(tail) {
		return 0, ErrRange
	}
	gone := uint32(above)
	err = eachRange(set, func(first, last uint32) { gone += v.known.remove(first, last) })
	v.exists -= gone
	return gone, err
}

// Learn gives messages of the unknown tail their UIDs: u is those of the messages
// from number first on, up to some. The first of them may have become known since
// somebody asked, and there may be more messages now.
func (v *View) Learn(first uint32, u *UIDs) error {
	old := v.Known() + 1 - first
	if first == 0 || first > v.Known()+1 || u.within(1, v.floor) != old || u.Len()-old > v.Unknown() {
		return ErrMismatch
	}
	u.remove(1, v.floor)
	v.known.join(u)
	v.floor = max(v.floor, u.Max())
	v.settle()
	return nil
}

// LearnBelow notes that the messages of the unknown tail have UIDs below uidNext (0:
// that is not known). Where there are only as many UIDs, they are theirs, also of
// those that are gone by now.
func (v *View) LearnBelow(uidNext uint32) {
	k := v.Unknown()
	if k == 0 || uidNext <= v.floor || uidNext-1-v.floor != k {
		return
	}
	v.known.put(v.floor+1, v.floor+k)
	v.known.recount()
	v.floor += k
	v.settle()
}

// LearnOne takes a UID that came along in a FETCH, if it is that of the first
// message in the unknown tail.
func (v *View) LearnOne(n, uid uint32) {
	if n != v.Known()+1 || n > v.exists || uid <= v.floor || uid > maxUID {
		return
	}
	v.known.Add(uid)
	v.floor = uid
	v.settle()
}

// Compact gives back what expunging and learning left over; for a session that is
// about to rest.
func (v *View) Compact() { v.known.compact() }

// MapSet is the set of UIDs that addresses, on a connection with the snapshot of d,
// the messages which the client means by the numbers of set. Where one of them is
// a ghost of d it says so instead. d may be nil: then the view is the snapshot.
//
// A range of numbers becomes one range of UIDs. It spans the holes in between: what
// the snapshot has there, the view has as well.
func (v *View) MapSet(set imap.Set, d *Diff) (uids imap.Set, ghosts bool, err error) {
	uids = make(imap.Set, 0, len(set))
	for _, r := range set {
		first, last := v.star(r.First), v.star(r.Last)
		first, last = min(first, last), max(first, last) // "5:*" of four
		if first == 0 || last > v.exists {
			return nil, false, ErrRange
		}
		if d != nil && d.numbers.within(first, last) > 0 {
			ghosts = true
			continue // the rest of the set can still be out of range
		}
		a, _ := v.UID(first)
		b, ok := v.UID(last)
		if !ok {
			return nil, false, ErrUnknown
		}
		uids = append(uids, imap.Range{First: a, Last: b})
	}
	if ghosts {
		return nil, true, nil
	}
	return uids, false, nil
}

func (v *View) star(n uint32) uint32 {
	if n == imap.Star {
		return v.exists
	}
	return n
}
