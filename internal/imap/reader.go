// Package imap implements the wire format of IMAP (RFC 9051, RFC 3501): lines, literals,
// commands, responses, capability lists and sequence sets. It reads them from a stream within
// bounds and writes them.
//
// The package frames bytes. It does not know the meaning of commands, the role of the peer, or
// the state of the session. A Reader belongs to the goroutine that reads from it. Relayed bytes
// are passed on unchanged, never decoded and encoded again. Only Conn turns contexts and
// timeouts into deadlines.
package imap

import (
	"bytes"
	"errors"
	"io"
)

// Framing errors. None can be recovered from by reading on, except as documented at
// ReadCommand.
var (
	ErrLineTooLong = errors.New("line is longer than the limit")
	ErrLineEnding  = errors.New("line does not end in CRLF, or has an LF inside")
	ErrLiteral     = errors.New("literal size is malformed")
)

// Side is the half of a dialogue that a Reader reads.
type Side uint8

// The values of Side. They differ in one thing: the text of a status response may
// end like a literal announcement without being one (RFC 9051 §7.1, resp-text).
const (
	Commands Side = iota
	Responses
)

// SegmentKind is the content of a Segment.
type SegmentKind uint8

// The values of SegmentKind.
const (
	LineEnd     SegmentKind = iota // a line, or the rest of one, with CRLF even if it ended in LF
	LinePart                       // the beginning or middle of a line longer than the buffer
	LiteralData                    // octets of a literal
)

// Segment is a run of bytes of one command or response. Bytes is valid until the next call.
type Segment struct {
	Bytes   []byte
	Kind    SegmentKind
	Literal Literal // announced at a LineEnd; Size -1: none
	End     bool    // the command or response ends with this segment

	// A quoted string begins in the line and does not end in it, which no grammar allows. An
	// apparent literal at the end of such a line is not treated as one, but may be one.
	Unclosed bool
}

const (
	minBuffer       = 512
	maxAnnouncement = 32 // at least the longest literal announcement, "~{18446744073709551615+}\r\n"
)

// Reader splits a byte stream into lines and literals. The sizes of reads never change the
// segments' joined bytes, nor where commands end.
//
// A line ends in CRLF (RFC 9051 §2.2). A line of commands may also end in a bare LF if that is
// the last byte read so far: scripts and people at a terminal send such lines one at a time. If
// a read fills the buffer, a TryReader is asked whether more has arrived. The segment then has
// CRLF. A bare LF with bytes after it is an error, never part of a line: read sizes decide
// whether a line is accepted, not where it ends.
type Reader struct {
	// Set once.
	src     io.Reader
	maxSize int // largest buffer, in bytes
	side    Side

	// Owned by the reading goroutine.
	atBoundary     bool // the next byte begins a command or response
	midLine        bool // the last segment was a LinePart
	inStatus       bool // the response is a status response or a continuation request
	inQuoted       bool // the line so far ends inside a quoted string
	afterBackslash bool // … and after a backslash
	afterBrace     bool // an earlier LinePart of the line has an opening brace
	buf            []byte
	r, w           int   // buf[r:w] is unread
	lastReadFull   bool  // the last read filled the buffer: more may have arrived
	scanned        int   // unread bytes already searched for LF
	literalLeft    int64 // octets of the current literal not yet returned
}

// NewReader returns a Reader for one side of a dialogue. Its buffer grows to at most size bytes
// (never below 512).
func NewReader(src io.Reader, side Side, size int) *Reader {
	return &Reader{src: src, side: side, maxSize: max(size, minBuffer), atBoundary: true}
}

// Buffered returns the number of unread bytes in the buffer.
func (r *Reader) Buffered() int { return r.w - r.r }

// Peek returns the unread bytes in the buffer, valid until the next call.
func (r *Reader) Peek() []byte { return r.buf[r.r:r.w] }

// TakeBuffered removes and returns the unread bytes, nil if there are none. The caller owns
// them; the Reader starts a new buffer.
func (r *Reader) TakeBuffered() []byte {
	var rest []byte
	if r.r < r.w { // so that the caller does not keep an empty buffer
		rest = r.buf[r.r:r.w:r.w]
	}
	r.buf, r.r, r.w, r.scanned = nil, 0, 0, 0
	return rest
}

// Next returns the next segment: the bytes of a line, or of a literal as they arrive. A line
// longer than the buffer is returned in LineParts. Next does not allocate once the buffer has
// grown. Errors: ErrLineEnding, ErrLiteral, and those of the source.
func (r *Reader) Next() (Segment, error) {
	for {
		s, ok, err := r.NextBuffered()
		if ok || err != nil {
			return s, err
		}
		if err := r.Fill(); err != nil {
			return Segment{}, err
		}
	}
}

// NextBuffered is Next without reading: ok is false if the buffer has no complete segment.
// Segments of responses are contiguous in memory and valid until the next Fill.
func (r *Reader) NextBuffered() (s Segment, ok bool, err error) {
	if r.literalLeft > 0 {
		return r.emitLiteral()
	}
	if !r.midLine {
		r.inQuoted, r.afterBackslash, r.afterBrace = false, false, false // no quoted string spans lines
	}
	if i := bytes.IndexByte(r.buf[r.r+r.scanned:r.w], '\n'); i >= 0 {
		return r.emitLine(r.scanned + i + 1)
	}
	if r.w-r.r >= r.maxSize {
		return r.emitPart(r.w - r.r - maxAnnouncement), true, nil
	}
	r.scanned = r.w - r.r
	return Segment{}, false, nil
}

// AtBoundary reports whether the last segment ended a command or response.
func (r *Reader) AtBoundary() bool { return r.atBoundary }

// CancelLiteral drops the literal announced last, after its sender was refused the
// continuation. A new command begins.
func (r *Reader) CancelLiteral() { r.literalLeft, r.atBoundary = 0, true }

// SwapBuffer replaces the buffer by buf, which must be large enough for the unread bytes, and
// returns the old one. So Readers can share buffers, and idle ones need none.
func (r *Reader) SwapBuffer(buf []byte) []byte {
	if len(buf) < r.w-r.r {
		panic("imap: buffer too small for the unread bytes")
	}
	old := r.buf
	n := copy(buf, old[r.r:r.w])
	r.buf, r.r, r.w = buf, 0, n
	return old
}

// Preload copies bytes that were already read from the source into an empty Reader.
func (r *Reader) Preload(b []byte) {
	r.buf = append([]byte(nil), b...)
	r.buf = r.buf[:len(b):len(b)]
	r.w = len(b)
}

// BufferSize returns the length of the current buffer.
func (r *Reader) BufferSize() int { return len(r.buf) }

func (r *Reader) emitLiteral() (Segment, bool, error) {
	n := min(int64(r.w-r.r), r.literalLeft)
	if n == 0 {
		return Segment{}, false, nil
	}
	s := Segment{Bytes: r.buf[r.r : r.r+int(n)], Kind: LiteralData, Literal: noLiteral}
	r.r += int(n)
	r.literalLeft -= n
	return s, true, nil
}

// endsLine reports whether the LF that is the n-th unread byte ends a line. If the last read
// filled the buffer, more bytes may follow a bare LF.
func (r *Reader) endsLine(n int) bool {
	end := r.r + n
	return n > 1 && r.buf[end-2] == '\r' || r.side == Commands && end == r.w && !r.lastReadFull
}

func (r *Reader) emitLine(n int) (Segment, bool, error) {
	line := r.buf[r.r : r.r+n]
	if n < 2 || line[n-2] != '\r' { // rare
		if !r.endsLine(n) {
			return Segment{}, false, ErrLineEnding
		}
		line = append(line[:n-1:n-1], "\r\n"...) // copies the line
	}
	r.trackLineState(line)
	s := Segment{Bytes: line, Kind: LineEnd, Literal: noLiteral, End: true, Unclosed: r.inQuoted}
	if !r.inQuoted && !r.inStatus {
		text := line[:len(line)-len("\r\n")]
		lit, err := parseAnnouncement(text)
		if err != nil || r.afterBrace && lit.Size < 0 && text[len(text)-1] == '}' {
			return Segment{}, false, ErrLiteral // the brace may be in an earlier LinePart
		}
		s.Literal, s.End = lit, lit.Size < 0
		r.literalLeft = max(lit.Size, 0)
	}
	r.r += n
	r.scanned = 0
	r.atBoundary, r.midLine = s.End, false
	return s, true, nil
}

func (r *Reader) emitPart(n int) Segment {
	s := Segment{Bytes: r.buf[r.r : r.r+n], Kind: LinePart, Literal: noLiteral}
	r.trackLineState(s.Bytes)
	r.afterBrace = r.afterBrace || bytes.IndexByte(s.Bytes, '{') >= 0
	r.r += n
	r.scanned = 0
	r.atBoundary, r.midLine = false, true
	return s
}

// trackLineState records the state that the end of the line depends on.
func (r *Reader) trackLineState(b []byte) {
	if r.atBoundary {
		r.inStatus = r.side == Responses && isStatus(b)
	}
	if r.inStatus || !r.inQuoted && bytes.IndexByte(b, '"') < 0 {
		return
	}
	for _, c := range b {
		switch {
		case r.afterBackslash:
			r.afterBackslash = false
		case c == '\\' && r.inQuoted:
			r.afterBackslash = true
		case c == '"':
			r.inQuoted = !r.inQuoted
		}
	}
}

// Fill reads once. It moves or grows a full buffer. The end of the stream inside a line, command
// or response is io.ErrUnexpectedEOF.
func (r *Reader) Fill() error {
	switch unread := r.w - r.r; {
	case unread == 0:
		r.r, r.w = 0, 0
	case r.r > 0 && r.w == len(r.buf), unread <= r.r && len(r.buf)-r.w < len(r.buf)/2: // copies little to make the read larger
		r.r, r.w = 0, copy(r.buf, r.buf[r.r:r.w])
	}
	if r.w == len(r.buf) {
		grown := make([]byte, min(max(2*len(r.buf), minBuffer), r.maxSize))
		copy(grown, r.buf)
		r.buf = grown
	}
	for range 100 { // as bufio: a source may return 0, nil, but not forever
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		if n > 0 {
			if r.lastReadFull = r.w == len(r.buf); r.lastReadFull {
				r.probeAfterLF()
			}
			return nil
		}
		if err == io.EOF && (r.w > r.r || !r.atBoundary) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// TryReader is a source that can report whether more bytes have arrived.
type TryReader interface {
	io.Reader

	// TryRead is a Read that does not block. An error means that nothing has arrived, or that
	// the stream has ended; the next Read returns that end again. 0 and nil mean that it cannot
	// be determined.
	TryRead(p []byte) (int, error)
}

// probeAfterLF detects whether bytes follow a bare LF that fills the buffer. For other reads it
// does not call TryRead.
func (r *Reader) probeAfterLF() {
	src, ok := r.src.(TryReader)
	unread := r.buf[r.r:r.w]
	if !ok || r.side != Commands || !bytes.HasSuffix(unread, []byte("\n")) || bytes.HasSuffix(unread, []byte("\r\n")) {
		return
	}
	var next [1]byte
	n, err := src.TryRead(next[:])
	r.buf = append(r.buf[:r.w:r.w], next[:n]...) // exceeds maxSize by at most this byte
	r.w += n
	r.lastReadFull = n > 0 || err == nil
}

// ReadLine returns the next line without its line ending; limit bounds its bytes, line ending
// included. The bytes are valid until the next call. It does not parse literals. A line with an
// LF inside is read to its end, so that bytes after the LF are not taken for a line. Errors:
// ErrLineTooLong, ErrLineEnding (with the line), and those of the source.
func (r *Reader) ReadLine(limit int) ([]byte, error) {
	limit = min(limit, r.maxSize)
	var endingErr error
	for scanned := 0; ; {
		if i := bytes.IndexByte(r.buf[r.r+scanned:r.w], '\n'); i >= 0 {
			n := scanned + i + 1
			if n > limit {
				return nil, ErrLineTooLong
			}
			if !r.endsLine(n) {
				scanned, endingErr = n, ErrLineEnding
				continue
			}
			line := r.buf[r.r : r.r+n-1]
			r.r += n
			r.scanned = 0
			return bytes.TrimSuffix(line, []byte("\r")), endingErr
		}
		scanned = r.w - r.r
		if scanned >= limit {
			return nil, ErrLineTooLong
		}
		if err := r.Fill(); err != nil {
			return nil, err
		}
	}
}

// ReadOrSkipLine is ReadLine, but skips a line that exceeds limit by at most skip bytes. It
// then returns ErrLineSkipped with the last bytes of the line. If the line is longer still, or
// has an LF inside, it returns ErrLineTooLong.
func (r *Reader) ReadOrSkipLine(limit, skip int) ([]byte, error) {
	line, err := r.ReadLine(limit)
	if !errors.Is(err, ErrLineTooLong) || skip == 0 {
		return line, err
	}
	maxSkipped := min(limit, r.maxSize) + skip
	for skipped := 0; skipped <= maxSkipped; {
		if i := bytes.IndexByte(r.buf[r.r:r.w], '\n'); i >= 0 && skipped+i < maxSkipped && r.endsLine(i+1) {
			line = r.buf[r.r : r.r+i+1]
			r.r, r.scanned = r.r+i+1, 0
			return bytes.TrimRight(line, "\r\n"), ErrLineSkipped
		} else if i >= 0 {
			break
		}
		drop := max(0, r.w-r.r-maxAnnouncement) // keeps a literal announcement at the end
		r.r, r.scanned = r.r+drop, 0
		skipped += drop
		if err := r.Fill(); err != nil {
			return nil, err
		}
	}
	return nil, ErrLineTooLong
}

// ReadFull fills p with the next bytes of the stream.
func (r *Reader) ReadFull(p []byte) error {
	for len(p) > 0 {
		if r.r == r.w {
			err := r.Fill()
			if err == io.EOF {
				return io.ErrUnexpectedEOF
			}
			if err != nil {
				return err
			}
		}
		n := copy(p, r.buf[r.r:r.w])
		r.r += n
		r.scanned = 0
		p = p[n:]
	}
	return nil
}
