// Package imap is the wire format of IMAP (RFC 9051, RFC 3501): lines,
// literals, commands, responses, capability lists and sequence sets, read from
// a stream within bounds and written back.
//
// It frames bytes; it does not know what a command means, who the peer is or
// what may be said when. A Reader belongs to the goroutine that reads from it.
// Bytes that pass through are handed on as they came, never decoded and encoded
// again. Conn is the one place that turns contexts and time-outs into deadlines.
package imap

import (
	"bytes"
	"errors"
	"io"
)

// What a stream can do wrong. None of these can be recovered from by reading
// on, except as ReadCommand says.
var (
	ErrLineTooLong = errors.New("line is longer than the limit")
	ErrLineEnding  = errors.New("line does not end in CRLF, or has an LF inside")
	ErrLiteral     = errors.New("literal size is malformed")
)

// Side says which half of a dialogue a Reader reads.
type Side uint8

// The two sides. They differ in one thing: the text of a status response may
// end in what looks like a literal and is none (RFC 9051 §7.1, resp-text).
const (
	Commands Side = iota
	Responses
)

// SegmentKind says what a Segment holds.
type SegmentKind uint8

// The kinds of a Segment.
const (
	LineEnd     SegmentKind = iota // a line, or the rest of one, with CRLF whatever ended it
	LinePart                       // the beginning or middle of a line longer than the buffer
	LiteralData                    // octets of a literal
)

// Segment is a run of bytes of one command or response. Bytes are valid until
// the next call.
type Segment struct {
	Bytes   []byte
	Kind    SegmentKind
	Literal Literal // what a Text announces; Size -1: nothing
	End     bool    // the command or response ends with this segment

	// A quoted string has begun in the line and does not end in it, which no grammar
	// allows: what looks like a literal at its end is not taken for one, and may be one.
	Unclosed bool
}

const (
	minBuffer       = 512
	maxAnnouncement = 32 // longest literal announcement "~{18446744073709551615+}\r\n", and some
)

// Reader splits a byte stream into lines and literals. How the stream was cut
// into reads never changes the segments' joined bytes, nor where commands end.
//
// A line ends in CRLF (RFC 9051 §2.2). A line of commands may end in LF alone, where
// that LF is the last byte of all that was read: programs that speak line by line, as
// people do, send it so; where a read fills the buffer, a Looker is asked whether more
// has arrived. Segments have CRLF there. Such an LF with bytes behind it is
// an error, never part of a line: the cut decides whether a line is taken, not where
// it ends.
type Reader struct {
	// Set once.
	src     io.Reader
	maxSize int // the buffer's limit in bytes
	side    Side

	// Owned by the reading goroutine.
	atBoundary     bool // a command or response begins
	midLine        bool // a Part of the line went before
	inStatus       bool // the response is a status or a continuation request
	inQuoted       bool // the line so far ends inside a quoted string
	afterBackslash bool // … and behind a backslash
	afterBrace     bool // … and behind an opening brace
	buf            []byte
	r, w           int   // buf[r:w] is unread
	lastReadFull   bool  // the last read left no room, and may have been cut short: more may have arrived
	scanned        int   // unread bytes that are known to have no line end
	literalLeft    int64 // octets of the open literal still to come
}

// NewReader reads one side of a dialogue from src with a buffer that grows to
// at most size bytes (never below 512).
func NewReader(src io.Reader, side Side, size int) *Reader {
	return &Reader{src: src, side: side, maxSize: max(size, minBuffer), atBoundary: true}
}

// Buffered is the number of bytes read and not yet handed out.
func (r *Reader) Buffered() int { return r.w - r.r }

// Peek is the bytes read and not yet handed out, valid until the next call.
func (r *Reader) Peek() []byte { return r.buf[r.r:r.w] }

// TakeBuffered takes the bytes that were read too far, which are the caller's now; nil when
// there are none. The Reader begins with a new buffer.
func (r *Reader) TakeBuffered() []byte {
	var rest []byte
	if r.r < r.w { // or the caller would keep an empty buffer
		rest = r.buf[r.r:r.w:r.w]
	}
	r.buf, r.r, r.w, r.scanned = nil, 0, 0, 0
	return rest
}

// Next is the next segment: the bytes of a line, or of a literal as they come.
// A line longer than the buffer comes in Parts. It allocates nothing once the
// buffer has grown. Errors: ErrLineEnding, ErrLiteral, or those of the source.
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

// NextBuffered is Next without reading: ok is false when what was read holds no whole
// segment. Until the next Fill, segments of responses lie side by side in memory, and stay.
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

// AtBoundary says whether the last segment ended a command or response.
func (r *Reader) AtBoundary() bool { return r.atBoundary }

// CancelLiteral forgets the literal that was announced last: its sender has been told
// not to send it, and a new command begins.
func (r *Reader) CancelLiteral() { r.literalLeft, r.atBoundary = 0, true }

// SwapBuffer gives the Reader another buffer, which must hold what is unread, and
// returns the one it had: so buffers can be shared, and idle Readers have none.
func (r *Reader) SwapBuffer(buf []byte) []byte {
	if len(buf) < r.w-r.r {
		panic("imap: buffer too small for what is unread")
	}
	old := r.buf
	n := copy(buf, old[r.r:r.w])
	r.buf, r.r, r.w = buf, 0, n
	return old
}

// Preload gives the Reader, which has nothing yet, a copy of what was read from
// its source before.
func (r *Reader) Preload(b []byte) {
	r.buf = append([]byte(nil), b...)
	r.buf = r.buf[:len(b):len(b)]
	r.w = len(b)
}

// BufferSize is the length of the buffer the Reader has now.
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

// endsLine says whether the LF that is the n-th unread byte ends a line. At the end of
// a read that was cut short by the buffer, bytes may stand behind it.
func (r *Reader) endsLine(n int) bool {
	end := r.r + n
	return n > 1 && r.buf[end-2] == '\r' || r.side == Commands && end == r.w && !r.lastReadFull
}

func (r *Reader) emitLine(n int) (Segment, bool, error) {
	line := r.buf[r.r : r.r+n]
	if n < 2 || line[n-2] != '\r' { // which is rare
		if !r.endsLine(n) {
			return Segment{}, false, ErrLineEnding
		}
		line = append(line[:n-1:n-1], "\r\n"...) // a copy of its own
	}
	r.trackLineState(line)
	s := Segment{Bytes: line, Kind: LineEnd, Literal: noLiteral, End: true, Unclosed: r.inQuoted}
	if !r.inQuoted && !r.inStatus {
		text := line[:len(line)-len("\r\n")]
		lit, err := parseAnnouncement(text)
		if err != nil || r.afterBrace && lit.Size < 0 && text[len(text)-1] == '}' {
			return Segment{}, false, ErrLiteral // the brace may be in a Part that went before
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

// trackLineState notes what the end of a line must know of its beginning.
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

// Fill reads once. The buffer is moved or grown when it is full. The end of the
// stream inside a command or response is io.ErrUnexpectedEOF.
func (r *Reader) Fill() error {
	err := r.fill()
	if err != nil && (r.literalLeft > 0 || !r.atBoundary) {
		return unexpectedEOF(err)
	}
	return r.eofError(err)
}

func (r *Reader) fill() error {
	switch unread := r.w - r.r; {
	case unread == 0:
		r.r, r.w = 0, 0
	case unread <= r.r && len(r.buf)-r.w < len(r.buf)/2: // a little copying for a larger read
		r.r, r.w = 0, copy(r.buf, r.buf[r.r:r.w])
	}
	if r.w == len(r.buf) {
		r.growBuffer()
	}
	for range 100 { // as bufio: a source may return 0, nil, but not for ever
		n, err := r.src.Read(r.buf[r.w:])
		r.w += n
		if n > 0 {
			if r.lastReadFull = r.w == len(r.buf); r.lastReadFull {
				r.probeAfterLF()
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}

// TryReader is a source that can tell whether more has arrived.
type TryReader interface {
	io.Reader

	// TryRead is a Read that does not wait. Its error says that nothing has arrived,
	// or that nothing will come any more, which the next Read says again; 0 and nil say
	// that it cannot be told.
	TryRead(p []byte) (int, error)
}

// probeAfterLF finds out whether anything stands behind an LF alone that fills the buffer.
// Other reads cost no look.
func (r *Reader) probeAfterLF() {
	src, ok := r.src.(TryReader)
	unread := r.buf[r.r:r.w]
	if !ok || r.side != Commands || !bytes.HasSuffix(unread, []byte("\n")) || bytes.HasSuffix(unread, []byte("\r\n")) {
		return
	}
	var next [1]byte
	n, err := src.TryRead(next[:])
	r.buf = append(r.buf[:r.w:r.w], next[:n]...) // beyond the limit at most by this byte
	r.w += n
	r.lastReadFull = n > 0 || err == nil
}

func (r *Reader) growBuffer() {
	if r.r > 0 {
		copy(r.buf, r.buf[r.r:r.w])
		r.r, r.w = 0, r.w-r.r
		return
	}
	grown := make([]byte, min(max(2*len(r.buf), minBuffer), r.maxSize))
	copy(grown, r.buf[:r.w])
	r.buf = grown
}

func (r *Reader) eofError(err error) error {
	if err != nil && (r.w > r.r || r.midLine) {
		return unexpectedEOF(err)
	}
	return err
}

func unexpectedEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ReadLine is the next line without what ends it, at most limit bytes with that. The
// bytes are valid until the next call. It does not look for literals. A line with an LF
// inside is read to its end, so that nothing behind the LF is taken for a line.
// Errors: ErrLineTooLong, ErrLineEnding (with the line), or those of the source.
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
		if err := r.fill(); err != nil {
			return nil, r.eofError(err)
		}
	}
}

// ReadOrSkipLine is ReadLine, and reads past a line that is longer: at most skip
// bytes more of it than limit, which it does not keep. Then the error is ErrLineSkipped, with
// the last bytes of that line; without an end in them, or with an LF inside, it is ErrLineTooLong.
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
		drop := max(0, r.w-r.r-maxAnnouncement) // an announcement of a literal is kept
		r.r, r.scanned = r.r+drop, 0
		skipped += drop
		if err := r.fill(); err != nil {
			return nil, r.eofError(err)
		}
	}
	return nil, ErrLineTooLong
}

// ReadFull fills p with the stream's next bytes.
func (r *Reader) ReadFull(p []byte) error {
	for len(p) > 0 {
		if r.r == r.w {
			if err := r.fill(); err != nil {
				return unexpectedEOF(err)
			}
		}
		n := copy(p, r.buf[r.r:r.w])
		r.r += n
		r.scanned = 0
		p = p[n:]
	}
	return nil
}
