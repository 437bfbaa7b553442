package audit

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Broken is where a chain of records does not hold.
type Broken struct {
	Line int // 1-based
	Why  string
}

func (b *Broken) Error() string { return fmt.Sprintf("line %d: %s", b.Line, b.Why) }

// Verifier checks chained records, file by file, oldest first. The zero value
// begins before the first. It is not told when the newest records were cut off,
// or when all were made anew by somebody who may write the file: for that, a
// copy must be elsewhere.
type Verifier struct {
	Records int    // that hold
	Torn    int    // lines that a killed process left unfinished
	First   uint64 // number of the first record
	chain   chain
}

// Last is the number and hash of the last record, to be compared with a copy.
func (v *Verifier) Last() (seq uint64, hash string) {
	return v.chain.seq, hex.EncodeToString(v.chain.hash[:])
}

// File checks the next file. The error is a *Broken, or of the reader.
func (v *Verifier) File(r io.Reader) error {
	in := bufio.NewReaderSize(r, 4*maxRecord)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(line) == 0 {
			return nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			if errors.Is(err, bufio.ErrBufferFull) {
				return &Broken{n, "is longer than a record can be"}
			}
			return err
		}
		if why := v.line(bytes.TrimSuffix(line, []byte{'\n'})); why != "" {
			return &Broken{n, why}
		}
	}
}

// line checks one line and says what is wrong with it, or "". An unfinished one
// can be left out: whoever made it of a whole record has left a gap.
func (v *Verifier) line(text []byte) string {
	if !json.Valid(text) {
		v.Torn++
		return ""
	}
	l, ok := linkOf(text)
	if !ok {
		return "has no link of the chain: it was added, changed, or written without audit.chain"
	}
	before := v.chain
	switch {
	case v.Records == 0:
		if why := v.begin(l, &before); why != "" {
			return why
		}
		v.First = l.Seq
	case l.Seq != before.seq+1:
		return fmt.Sprintf("is record %d, and record %d was expected", l.Seq, before.seq+1)
	case l.Event == names[logOpened] && l.Previous != hex.EncodeToString(before.hash[:]):
		return "names another record before it than there is"
	}
	if before.over(l.text) != l.hash {
		return "does not have its hash: it, or the record before it, was changed"
	}
	v.chain = chain{seq: l.Seq, hash: l.hash}
	v.Records++
	return ""
}

// begin gives the chain before the first record: one that opened its file names
// the hash before it.
func (v *Verifier) begin(l linked, before *chain) string {
	if l.Event != names[logOpened] {
		return fmt.Sprintf("is record %d, amid a chain: the beginning of the file is missing", l.Seq)
	}
	if l.Previous == "" && l.Seq != 1 {
		return "names no record before it"
	}
	if n, err := hex.Decode(before.hash[:], []byte(l.Previous)); err != nil || l.Previous != "" && n != len(before.hash) {
		return "names no hash before it"
	}
	return ""
}
