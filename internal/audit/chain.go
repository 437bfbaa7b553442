package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"

	"imapgate/internal/event"
)

// hashPrefix begins the last member of a chained record. The hash covers the 32
// bytes of the previous hash and the line up to here.
const hashPrefix = `,"hash":"`

// chain is the position in a chain of records. Each record has its number and a hash
// over the previous hash and itself: changing, removing or inserting a record
// invalidates all later ones.
type chain struct {
	seq  uint64 // of the last record
	hash [sha256.Size]byte
}

// appendRecords appends lines to dst, each with its number and hash.
func (c *chain) appendRecords(dst, lines []byte) []byte {
	for len(lines) > 0 {
		end := bytes.IndexByte(lines, '\n') + 1
		dst = c.appendRecord(dst, lines[:end])
		lines = lines[end:]
	}
	return dst
}

// appendRecord appends one record with its number and hash.
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

// sum returns the hash of a record that follows this position. The stack buffer
// holds a whole record, because a hash.Hash would be one allocation for each.
func (c *chain) sum(text []byte) [sha256.Size]byte {
	var buf [sha256.Size + maxRecordBytes]byte
	return sha256.Sum256(append(append(buf[:0], c.hash[:]...), text...))
}

// firstRecord returns the first record of a new file and the chain after it. The
// record names the last hash of the previous file, unless the chain begins here.
func (c *chain) firstRecord() ([]byte, chain) {
	next := *c
	record := new(headerWriter).appendHeader(nil, event.LogOpened)
	if c.seq > 0 {
		record = appendText(record, "previous", hex.EncodeToString(c.hash[:]), sha256.Size*2)
	}
	return next.appendRecord(nil, append(record, '}', '\n')), next
}

// restoreFrom sets the position after the last complete chained line of a file's
// tail. It returns false if there is no such line.
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

// chainedRecord is the part of a record that verification needs.
type chainedRecord struct {
	Event    string `json:"event"`
	Seq      uint64 `json:"seq"`
	Hash     string `json:"hash"`
	Previous string `json:"previous"`
	hash     [sha256.Size]byte
	hashed   []byte // the hashed text, without the previous hash
}

// parseChained parses a line without its newline. It returns false if the line is
// not a complete chained record.
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
