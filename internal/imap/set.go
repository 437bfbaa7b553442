package imap

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// ErrSet is returned for a malformed sequence set.
var ErrSet = errors.New("malformed sequence set")

// Star is the * of a sequence set: the largest number in use.
const Star = math.MaxUint32

// MaxRanges bounds the ranges of one set, which then take 8 MB. A line of 2 MB has no more.
const MaxRanges = 1 << 20

// Range is a run of message numbers or UIDs, First <= Last. Star is above every number, so
// ParseSet rejects the number 4294967295 itself.
type Range struct{ First, Last uint32 }

// Set is a sequence set (RFC 9051 §9, sequence-set) in its original order.
type Set []Range

// ParseSet parses a set such as "1,4:9,12:*". "9:4" is the same as "4:9".
func ParseSet(s string) (Set, error) {
	if strings.Count(s, ",") >= MaxRanges {
		return nil, ErrSet
	}
	var set Set
	for item := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(item, ":")
		first, err := parseSetNumber(a)
		last := first
		if err == nil && isRange {
			last, err = parseSetNumber(b)
		}
		if err != nil {
			return nil, err
		}
		set = append(set, Range{min(first, last), max(first, last)})
	}
	return set, nil
}

func parseSetNumber(s string) (uint32, error) {
	if s == "*" {
		return Star, nil
	}
	n, ok := parseNumber([]byte(s))
	if !ok || n == 0 || n >= Star {
		return 0, ErrSet
	}
	return uint32(n), nil
}

// String returns the set in the grammar ParseSet reads.
func (s Set) String() string {
	var b []byte
	for i, r := range s {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendSetNumber(b, r.First)
		if r.Last != r.First {
			b = appendSetNumber(append(b, ':'), r.Last)
		}
	}
	return string(b)
}

func appendSetNumber(b []byte, n uint32) []byte {
	if n == Star {
		return append(b, '*')
	}
	return strconv.AppendUint(b, uint64(n), 10)
}

// Contains reports whether the set contains n if the largest number in use is largest.
func (s Set) Contains(n, largest uint32) bool {
	for _, r := range s {
		first, last := r.First, r.Last
		if first == Star {
			first = largest
		}
		if last == Star {
			last = largest
		}
		if first > last { // "5:*" with fewer than 5: the same as "*:5"
			first, last = last, first
		}
		if n >= first && n <= last {
			return true
		}
	}
	return false
}
