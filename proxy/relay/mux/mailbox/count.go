package mailbox

import "imapgate/internal/imap"

// CountNumbers returns how many messages a set of message numbers addresses. Duplicates may
// count twice; the result never exceeds Exists.
func (v *View) CountNumbers(set imap.Set) uint32 {
	n := uint64(0)
	for _, r := range set {
		first, last := v.resolveStar(r.First), v.resolveStar(r.Last)
		first, last = min(first, last), min(max(first, last), v.exists)
		if 0 < first && first <= last {
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
