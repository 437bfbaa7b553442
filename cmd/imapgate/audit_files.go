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

// maxAuditLine bounds a line; the gateway's are much shorter.
const maxAuditLine = 64 << 10

// auditFile is a file of the audit log, compressed or not.
type auditFile struct {
	name string
	from time.Time // of its first record
	seq  uint64    // of that record in its chain; 0 without one
	in   *bufio.Reader
	file io.Closer
}

func (f *auditFile) Close() error { return f.file.Close() }

// openAudits opens files and puts them in the order of their first records:
// a shell names the newest first.
func openAudits(names []string, stdin io.Reader) ([]*auditFile, error) {
	var files []*auditFile
	for _, name := range names {
		f, err := openOneAudit(name, stdin)
		if err != nil {
			closeAudits(files)
			return nil, err
		}
		files = append(files, f)
	}
	slices.SortStableFunc(files, func(a, b *auditFile) int { return a.from.Compare(b.from) })
	return files, nil
}

// chainOrder puts files in the order of their chain, which no step of the clock
// changes.
func chainOrder(files []*auditFile) {
	slices.SortStableFunc(files, func(a, b *auditFile) int { return cmp.Compare(a.seq, b.seq) })
}

func closeAudits(files []*auditFile) {
	for _, f := range files {
		_ = f.Close() // was read only
	}
}

// openOneAudit opens a file; "-" is standard input.
func openOneAudit(name string, stdin io.Reader) (*auditFile, error) {
	f := &auditFile{name: name, in: bufio.NewReaderSize(stdin, maxAuditLine), file: io.NopCloser(stdin)}
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		f.in, f.file = bufio.NewReaderSize(file, maxAuditLine), file
	}
	if magic, _ := f.in.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // RFC 1952
		plain, err := gzip.NewReader(f.in)
		if err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		f.in = bufio.NewReaderSize(plain, maxAuditLine)
	}
	first := firstRecord(f.in)
	f.from, f.seq = first.Time, first.Seq
	return f, nil
}

// firstLine is when the first record was made, and its number.
type firstLine struct {
	Time time.Time `json:"time"`
	Seq  uint64    `json:"seq"`
}

// firstRecord is the first record, or zero, read without taking it.
func firstRecord(in *bufio.Reader) firstLine {
	_, _ = in.Peek(1) // fills the buffer
	ahead, _ := in.Peek(in.Buffered())
	for text := range bytes.Lines(ahead) {
		var l firstLine
		if json.Unmarshal(text, &l) == nil && !l.Time.IsZero() {
			return l
		}
	}
	return firstLine{}
}

// lines gives each line to take, without its end, until take fails.
func (f *auditFile) lines(take func([]byte) error) error {
	for {
		text, err := f.in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			text, err = nil, f.skipLine() // as no record
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err == nil || len(text) > 0 {
			if taken := take(bytes.TrimSuffix(text, []byte{'\n'})); taken != nil {
				return taken
			}
		}
		if err != nil {
			return nil
		}
	}
}

// skipLine reads to the end of a line that is too long.
func (f *auditFile) skipLine() error {
	for {
		if _, err := f.in.ReadSlice('\n'); !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}
