package audit

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"imapgate/internal/event"
)

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
