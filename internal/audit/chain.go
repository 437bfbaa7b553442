package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
)

// hashMember is how the last member of a chained record begins. The hash is
// over the 32 bytes of the hash before and the line up to here.
const hashMember = `,"hash":"`

// chain is where a chain of records has got to. Each record has its number and
// a hash over the hash before it and itself: who changes, removes or inserts
// one breaks all that follow.
type chain struct {
	seq  uint64 // of the last record
	hash [sha256.Size]byte
}

// link appends lines to dst, each with its link.
func (c *chain) link(dst, lines []byte) []byte {
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n') + 1
		dst = c.add(dst, lines[:end])
		lines = lines[end:]
	}
	return dst
}

// add appends one record with its link.
func (c *chain) add(dst, line []byte) []byte {
	from := len(dst)
	dst = append(dst, bytes.TrimSuffix(line, []byte("}\n"))...)
	c.seq++
	dst = appendCount(dst, "seq", c.seq)
	c.hash = c.over(dst[from:])
	dst = append(dst, hashMember...)
	dst = hex.AppendEncode(dst, c.hash[:])
	return append(dst, '"', '}', '\n')
}

// over is the hash of a record's text behind this one. The room on the stack is
// for a whole record: a hash.Hash would be garbage for each.
func (c *chain) over(text []byte) [sha256.Size]byte {
	var room [sha256.Size + maxRecord]byte
	return sha256.Sum256(append(append(room[:0], c.hash[:]...), text...))
}

// opening is the first record of a new file and the chain behind it. It names
// the last hash of the file before, unless the chain begins with it.
func (c *chain) opening() ([]byte, chain) {
	next := *c
	record := new(stamp).start(nil, logOpened)
	if c.seq > 0 {
		record = appendText(record, "previous", hex.EncodeToString(c.hash[:]), sha256.Size*2)
	}
	return next.add(nil, append(record, '}', '\n')), next
}

// follow goes on where the end of a file stopped, at the last line that is whole
// and has a link. False: there is none.
func (c *chain) follow(end []byte) bool {
	for len(end) > 0 {
		i := bytes.LastIndexByte(end, '\n')
		line := end[i+1:]
		if l, ok := linkOf(line); ok {
			c.seq, c.hash = l.Seq, l.hash
			return true
		}
		end = end[:max(i, 0)]
	}
	return false
}

// linked is what verification needs of a record.
type linked struct {
	Event    string `json:"event"`
	Seq      uint64 `json:"seq"`
	Hash     string `json:"hash"`
	Previous string `json:"previous"`
	hash     [sha256.Size]byte
	text     []byte // what the hash is over, besides the hash before
}

// linkOf takes a line without its end apart; false when it is not a whole record
// with a link.
func linkOf(line []byte) (linked, bool) {
	var l linked
	i := bytes.LastIndex(line, []byte(hashMember))
	if i < 0 || json.Unmarshal(line, &l) != nil || l.Seq == 0 || len(line) != i+len(hashMember)+2*sha256.Size+2 {
		return l, false
	}
	l.text = line[:i]
	if !bytes.HasSuffix(l.text, strconv.AppendUint([]byte(`,"seq":`), l.Seq, 10)) {
		return l, false
	}
	n, err := hex.Decode(l.hash[:], []byte(l.Hash))
	return l, err == nil && n == sha256.Size
}
