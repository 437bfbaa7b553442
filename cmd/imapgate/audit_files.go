package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// maxAuditLineBytes bounds a line, which the gateway never reaches.
const maxAuditLineBytes = 64 << 10

// auditFile is a file of the audit log, compressed or not.
type auditFile struct {
	name      string
	firstTime time.Time // time of its first record
	firstSeq  uint64    // chain number of that record; 0 without one
	r         *bufio.Reader
	closer    io.Closer
}

func (f *auditFile) Close() error { return f.closer.Close() }

// openAuditFiles opens files and sorts them by their first records, because a shell
// lists the newest first.
func openAuditFiles(names []string, stdin io.Reader) ([]*auditFile, error) {
	var files []*auditFile
	for _, name := range names {
		f, err := openAuditFile(name, stdin)
		if err != nil {
			closeAuditFiles(files)
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortStableFunc(files, func(a, b *auditFile) int { return a.firstTime.Compare(b.firstTime) })
	return files, nil
}

// sortByChain sorts files by their chain numbers, which do not depend on the clock.
func sortByChain(files []*auditFile) {
	slices.SortStableFunc(files, func(a, b *auditFile) int { return cmp.Compare(a.firstSeq, b.firstSeq) })
}

func closeAuditFiles(files []*auditFile) {
	for _, f := range files {
		_ = f.Close() // it was only read
	}
}

// openAuditFile opens a file; "-" is standard input.
func openAuditFile(name string, stdin io.Reader) (*auditFile, error) {
	f := &auditFile{name: name, r: bufio.NewReaderSize(stdin, maxAuditLineBytes), closer: io.NopCloser(stdin)}
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		f.r, f.closer = bufio.NewReaderSize(file, maxAuditLineBytes), file
	}
	if magic, _ := f.r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // RFC 1952
		unzipped, err := gzip.NewReader(f.r)
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		f.r = bufio.NewReaderSize(unzipped, maxAuditLineBytes)
	}
	first := peekFirstRecord(f.r)
	f.firstTime, f.firstSeq = first.Time, first.Seq
	return f, nil
}

// recordOrder has the time and the number of a record.
type recordOrder struct {
	Time time.Time `json:"time"`
	Seq  uint64    `json:"seq"`
}

// peekFirstRecord returns the first record, or zero, without consuming it.
func peekFirstRecord(in *bufio.Reader) recordOrder {
	_, _ = in.Peek(1) // fills the buffer
	buffered, _ := in.Peek(in.Buffered())
	for text := range bytes.Lines(buffered) {
		var l recordOrder
		if json.Unmarshal(text, &l) == nil && !l.Time.IsZero() {
			return l
		}
	}
	return recordOrder{}
}

// eachLine calls visit with each line, without its newline, until visit fails.
func (f *auditFile) eachLine(visit func([]byte) error) error {
	for {
		text, err := f.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			text, err = nil, f.skipLine() // visited as an empty line, which is not a record
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err == nil || len(text) > 0 {
			if visitErr := visit(bytes.TrimSuffix(text, []byte{'\n'})); visitErr != nil {
				return visitErr
			}
		}
		if err != nil {
			return nil
		}
	}
}

// skipLine reads the rest of a line that is too long.
func (f *auditFile) skipLine() error {
	for {
		if _, err := f.r.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
