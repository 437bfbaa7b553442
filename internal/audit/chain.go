package audit

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// chainLock is shared by the processes that write one chain: a lock, and the
// position of the chain. It is a file beside the log that only their user may open.
// A reader of the log could otherwise hold its lock, and a writer could add a record
// that continues the chain.
type chainLock struct{ file *os.File }

// chainLockPath returns the path of a log's lock file, which audit.log* does not
// match.
func chainLockPath(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
}

// chainPosition is the position that the writers of a chain have reached.
type chainPosition struct {
	file  fileID
	size  int64 // file size after the last record
	chain chain
}

// fileID identifies an existing file.
type fileID struct{ dev, ino uint64 }

// maxLockFileBytes exceeds the size of a lock file.
const maxLockFileBytes = 256

// readPosition returns what writePosition stored, or the zero value.
func (c *chainLock) readPosition() (p chainPosition) {
	var b [maxLockFileBytes]byte
	n, _ := c.file.ReadAt(b[:], 0) // io.EOF
	var hash []byte
	text := bytes.TrimRight(b[:n], " \n")
	if _, err := fmt.Sscanf(string(text), "1 %d %d %d %d %x", &p.file.dev, &p.file.ino, &p.size, &p.chain.seq, &hash); err != nil ||
		copy(p.chain.hash[:], hash) != len(p.chain.hash) {
		return chainPosition{}
	}
	return p
}

// writePosition stores p for the other writers. If it fails, they keep their own
// position.
func (c *chainLock) writePosition(p chainPosition) error {
	text := fmt.Appendf(nil, "1 %d %d %d %d %s", p.file.dev, p.file.ino, p.size, p.chain.seq, hex.EncodeToString(p.chain.hash[:]))
	_, err := c.file.WriteAt(append(text, bytes.Repeat([]byte{' '}, maxLockFileBytes-len(text))...), 0)
	return err
}

// ChainError is the place where a chain of records is broken.
type ChainError struct {
	Line   int // 1-based
	Reason string
}

func (c *ChainError) Error() string { return fmt.Sprintf("line %d: %s", c.Line, c.Reason) }

// Verifier checks chained records, file by file, oldest first. The zero value begins
// before the first file. It cannot detect that the newest records were removed, or
// that a user with write access rewrote the whole file; only a copy elsewhere can.
type Verifier struct {
	Records      int    // valid records
	PartialLines int    // lines that a killed process left unfinished
	FirstSeq     uint64 // number of the first record
	chain        chain
}

// Last returns the number and hash of the last record, for comparison with a copy.
func (v *Verifier) Last() (seq uint64, hash string) {
	return v.chain.seq, hex.EncodeToString(v.chain.hash[:])
}

// VerifyFile checks the next file. The error is a *ChainError, or that of the
// reader.
func (v *Verifier) VerifyFile(r io.Reader) error {
	in := bufio.NewReaderSize(r, 4*maxRecordBytes)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			if errors.Is(err, bufio.ErrBufferFull) {
				return &ChainError{n, "is longer than a record can be"}
			}
			return err
		}
		if reason := v.verifyLine(bytes.TrimSuffix(line, []byte{'\n'})); reason != "" {
			return &ChainError{n, reason}
		}
	}
}

// verifyLine checks one line and returns what is wrong with it, or "". Unfinished
// lines are skipped: a whole record that was cut leaves a gap in the numbers.
func (v *Verifier) verifyLine(text []byte) string {
	if !json.Valid(text) {
		v.PartialLines++
		return ""
	}
	l, ok := parseChained(text)
	if !ok {
		return "is not part of the chain: it was added, changed, or written without audit.chain"
	}
	previous := v.chain
	switch {
	case v.Records == 0:
		if reason := v.verifyFirst(l, &previous); reason != "" {
			return reason
		}
		v.FirstSeq = l.Seq
	case l.Seq != previous.seq+1:
		return fmt.Sprintf("is record %d, expected record %d", l.Seq, previous.seq+1)
	case l.Event == string(event.LogOpened) && l.Previous != hex.EncodeToString(previous.hash[:]):
		return "does not follow the record before it"
	}
	if previous.sum(l.hashed) != l.hash {
		return "has a wrong hash: it, or the record before it, was changed"
	}
	v.chain = chain{seq: l.Seq, hash: l.hash}
	v.Records++
	return ""
}

// verifyFirst sets previous to the chain before the first record: a record that
// opened its file names the hash before it.
func (v *Verifier) verifyFirst(l chainedRecord, previous *chain) string {
	if l.Event != string(event.LogOpened) {
		return fmt.Sprintf("is record %d of a chain: the beginning of the file is missing", l.Seq)
	}
	if l.Previous == "" && l.Seq != 1 {
		return "does not name the record before it"
	}
	if n, err := hex.Decode(previous.hash[:], []byte(l.Previous)); err != nil || l.Previous != "" && n != len(previous.hash) {
		return "does not name a valid hash before it"
	}
	return ""
}
