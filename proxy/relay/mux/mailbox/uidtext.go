package mailbox

import (
	"bytes"
	"strconv"

	"imapgate/internal/imap"
)

// maxUID is the largest UID. The number above it stands for * in an imap.Set; excluding it also
// keeps uid+1 from overflowing.
const maxUID = imap.Star - 1

// maxSetText bounds the text of one set, in bytes. The sparsest mailbox of a million messages
// needs 11 MB.
const maxSetText = 16 << 20

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
