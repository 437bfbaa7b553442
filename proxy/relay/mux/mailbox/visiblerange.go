package mailbox

import (
	"errors"

	"imapgate/internal/imap"
)

// ErrNoMatch is returned for a set of UIDs none of which is that of a visible message.
var ErrNoMatch = errors.New("no message has one of these UIDs")

// VisibleRange is the range of messages that a client knew when it sent a command. Later
// messages are not part of it, even for "*". It is comparable.
type VisibleRange struct {
	exists      uint32
	maxUID      uint32 // highest UID the client may know; 0: unknown
	maxKnownUID uint32 // highest UID the gateway knows
}

// VisibleRange returns the range of messages that the client knows now. m may be nil.
func (m *Mailbox) VisibleRange() VisibleRange {
	switch {
	case m == nil:
		return VisibleRange{}
	case m.UnknownCount() == 0:
		return VisibleRange{m.Exists(), m.MaxUID(), m.MaxUID()}
	case !m.hasArrivals && m.uidNext > 0:
		return VisibleRange{m.Exists(), m.uidNext - 1, m.MaxUID()}
	}
	return VisibleRange{exists: m.Exists(), maxKnownUID: m.MaxUID()}
}

// ClampNumbers limits a set of message numbers to the range. It returns ErrRange for
// numbers beyond it, and ErrNoMatch if no message remains.
func (v VisibleRange) ClampNumbers(set imap.Set) (imap.Set, error) {
	for _, r := range set {
		if r.Last > v.exists && (r.Last != imap.Star || v.exists == 0) {
			return nil, ErrRange
		}
	}
	return clamp(set, v.exists)
}

// ClampUIDs limits a set of UIDs to the range. It returns nil if the set need not change,
// although the range has no known end. It returns ErrNoMatch if no UID remains, and
// ErrUnknownUID if the set may extend beyond a range without a known end: a range beyond the
// highest known UID may include new messages. UIDs listed one by one cannot.
func (v VisibleRange) ClampUIDs(set imap.Set) (imap.Set, error) {
	if v.maxUID > 0 || v.exists == 0 {
		return clamp(set, v.maxUID)
	}
	for _, r := range set {
		if r.Last > v.maxKnownUID && r.First != r.Last || r.Last == imap.Star {
			return nil, ErrUnknownUID
		}
	}
	return nil, nil
}

// clamp limits a set to the numbers up to last.
func clamp(set imap.Set, last uint32) (imap.Set, error) {
	clamped := make(imap.Set, 0, len(set))
	for _, r := range set {
		switch {
		case r.Last == imap.Star && last > 0: // includes at least the last message
			r = imap.Range{First: min(r.First, last), Last: last}
		case r.First > last:
			continue
		}
		clamped = append(clamped, imap.Range{First: r.First, Last: min(r.Last, last)})
	}
	if len(clamped) == 0 {
		return nil, ErrNoMatch
	}
	return clamped, nil
}
