package view

import (
	"bytes"
	"strconv"

	"imapgate/internal/imap"
)

// maxUID is the largest UID. The number above it stands for * in an imap.Set,
// and without it the number behind a UID is always a number too.
const maxUID = imap.Star - 1

// maxSetText bounds the text of one set. The sparsest mailbox of a million
// messages needs 11 MB.
const maxSetText = 16 << 20

// eachRange calls do for every range of a set of UIDs that a server names:
// "1:5,7,12:9", where nothing is relative to what the mailbox holds, and so
// without *. It names no more UIDs than there are, which bounds the work.
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

// parseUID reads a nz-number (RFC 9051 §9).
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

// appendSet writes the set in the grammar eachRange reads.
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
