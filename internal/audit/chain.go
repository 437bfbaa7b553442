package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"
)

// hashPrefix is how the last member of a chained record begins. The hash is
// over the 32 bytes of the hash before and the line up to here.
const hashPrefix = `,"hash":"`

// chain is where a chain of records has got to. Each record has its number and
// a hash over the hash before it and itself: who changes, removes or inserts
// one breaks all that follow.
type chain struct {
	seq  uint64 // of the last record
	hash [sha256.Size]byte
}

// appendRecords appends lines to dst, each with its link.
func (c *chain) appendRecords(dst, lines []byte) []byte {
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n') + 1
		dst = c.appendRecord(dst, lines[:end])
		lines = lines[end:]
	}
	return dst
}

// appendRecord appends one record with its link.
func (c *chain) appendRecord(dst, line []byte) []byte {
	start := len(dst)
	dst = append(dst, bytes.TrimSuffix(line, []byte("}\n"))...)
	c.seq++
	dst = appendCount(dst, "seq", c.seq)
	c.hash = c.sum(dst[start:])
	dst = append(dst, hashPrefix...)
	dst = hex.AppendEncode(dst, c.hash[:])
	return append(dst, '"', '}', '\n')
}

// sum is the hash of a record's text behind this one. The room on the stack is
// for a whole record: a hash.Hash would be garbage for each.
func (c *chain) sum(text []byte) [sha256.Size]byte {
	var buf [sha256.Size + maxRecordBytes]byte
	return sha256.Sum256(append(append(buf[:0], c.hash[:]...), text...))
}

// firstRecord is the first record of a new file and the chain behind it. It names
// the last hash of the file before, unless the chain begins with it.
func (c *chain) firstRecord() ([]byte, chain) {
	next := *c
	record := new(headerWriter).appendHeader(nil, logOpened)
	if c.seq > 0 {
		record = appendText(record, "previous", hex.EncodeToString(c.hash[:]), sha256.Size*2)
	}
	return next.appendRecord(nil, append(record, '}', '\n')), next
}

// restoreFrom goes on where the end of a file stopped, at the last line that is whole
// and has a link. False: there is none.
func (c *chain) restoreFrom(tail []byte) bool {
	for len(tail) > 0 {
		i := bytes.LastIndexByte(tail, '\n')
		line := tail[i+1:]
		if l, ok := parseChained(line); ok {
			c.seq, c.hash = l.Seq, l.hash
			return true
		}
		tail = tail[:max(i, 0)]
	}
	return false
}

// chainedRecord is what verification needs of a record.
type chainedRecord struct {
	Event    string `json:"event"`
	Seq      uint64 `json:"seq"`
	Hash     string `json:"hash"`
	Previous string `json:"previous"`
	hash     [sha256.Size]byte
	hashed   []byte // what the hash is over, besides the hash before
}

// parseChained takes a line without its end apart; false when it is not a whole record
// with a link.
func parseChained(line []byte) (chainedRecord, bool) {
	var l chainedRecord
	i := bytes.LastIndex(line, []byte(hashPrefix))
	if i < 0 || json.Unmarshal(line, &l) != nil || l.Seq == 0 || len(line) != i+len(hashPrefix)+2*sha256.Size+2 {
		return l, false
	}
	l.hashed = line[:i]
	if !bytes.HasSuffix(l.hashed, strconv.AppendUint([]byte(`,"seq":`), l.Seq, 10)) {
		return l, false
	}
	n, err := hex.Decode(l.hash[:], []byte(l.Hash))
	return l, err == nil && n == sha256.Size
}
