package imap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// readFrames reads a stream to its end and records the end of each command or response. It
// fails if a line has a CR or LF other than its final CRLF.
func readFrames(r *Reader) (all []byte, ends []int, err error) {
	for {
		s, err := r.Next()
		if err != nil {
			return all, ends, err
		}
		if lf := bytes.IndexByte(s.Bytes, '\n'); s.Kind == LineEnd && lf != len(s.Bytes)-1 || s.Kind == LinePart && lf >= 0 ||
			s.Kind == LineEnd && !bytes.HasSuffix(s.Bytes, []byte("\r\n")) {
			return all, ends, fmt.Errorf("%q is not a line", s.Bytes)
		}
		all = append(all, s.Bytes...)
		if s.End {
			ends = append(ends, len(all))
		}
	}
}

func TestNextFindsWhereResponsesEnd(t *testing.T) {
	for _, tc := range []struct{ stream, ends string }{
		{"* OK hi\r\n", "[9]"},
		{"* 1 FETCH (BODY[] {5}\r\n\r\n){\n)\r\na OK\r\n", "[31 37]"},
		{"* OK text ends in {5}\r\n* BYE\r\n", "[23 30]"},
		{"a NO {3}\r\n* BYE\r\n", "[10 17]"},
		{"+ send {3}\r\n* BYE\r\n", "[12 19]"},
		{"* 1 FETCH (BODY[] {0}\r\n OK {3}\r\nabc)\r\n", "[38]"},
		{"* 1 FETCH (X ~{2}\r\n\x00\n Y {2}\r\nab)\r\n", "[34]"},
		{"* X \"{3}\r\n* BYE\r\n", "[10 17]"},
		{"* X \"\\\"{3}\r\n* BYE\r\n", "[12 19]"},
		{"* X \"\\\\\" {1}\r\nx\r\n", "[17]"},
	} {
		all, ends, err := readFrames(NewReader(strings.NewReader(tc.stream), Responses, 512))
		if err != io.EOF || string(all) != tc.stream || fmt.Sprint(ends) != tc.ends {
			t.Errorf("%q: ends %v, want %v; %v", tc.stream, ends, tc.ends, err)
		}
	}
}

func TestCommandIsNotParsedAsStatus(t *testing.T) {
	_, ends, err := readFrames(NewReader(strings.NewReader("a OK {3}\r\nabc\r\n"), Commands, 512))
	if err != io.EOF || fmt.Sprint(ends) != "[15]" {
		t.Errorf("ends %v, %v", ends, err)
	}
}

func TestLongLineIsReturnedInParts(t *testing.T) {
	for _, pad := range []int{400, 470, 480, 490, 500, 512, 600, 5000} {
		line := "* X \"" + strings.Repeat("\\\"", pad/2) + "\" {3}\r\n"
		stream := line + "a\r\n\r\n* 1 EXISTS\r\n"
		all, ends, err := readFrames(NewReader(strings.NewReader(stream), Responses, 512))
		if err != io.EOF || string(all) != stream || len(ends) != 2 || ends[0] != len(line)+5 {
			t.Errorf("%d: ends %v, %v", pad, ends, err)
		}
	}
}

func TestNextRejectsMalformedFraming(t *testing.T) {
	for _, s := range []string{"a\n", "\n", "a X {5}\n", "* OK\n"} {
		if _, _, err := readFrames(NewReader(strings.NewReader(s), Responses, 512)); !errors.Is(err, ErrLineEnding) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, n := range []string{"", "-1", "+", "5 ", "0x5", "05", "18446744073709551616", "9223372036854775808", "5++", "+5"} {
		if _, _, err := readFrames(NewReader(strings.NewReader("a X {"+n+"}\r\n"), Commands, 512)); !errors.Is(err, ErrLiteral) {
			t.Errorf("{%s}: %v", n, err)
		}
	}
	if _, _, err := readFrames(NewReader(strings.NewReader("a X {5}\r\nabc"), Commands, 512)); err != io.ErrUnexpectedEOF {
		t.Errorf("cut literal: %v", err)
	}
}

func TestReadLineEnforcesItsLimit(t *testing.T) {
	r := NewReader(iotest.OneByteReader(strings.NewReader(strings.Repeat("x", 9000))), Commands, 8192)
	if _, err := r.ReadLine(8192); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("%v", err)
	}
	if len(r.buf) > 8192 {
		t.Errorf("the buffer grew to %d", len(r.buf))
	}
	r = NewReader(strings.NewReader("a\r\nbc\r\nrest"), Commands, 8192)
	one, _ := r.ReadLine(100)
	first := string(one)
	two, err := r.ReadLine(100)
	if first != "a" || string(two) != "bc" || err != nil || string(r.TakeBuffered()) != "rest" || r.Buffered() != 0 {
		t.Errorf("%q %q %v", first, two, err)
	}
}

func BenchmarkRelayLine(b *testing.B) {
	line := []byte("* 4711 FETCH (UID 12345 FLAGS (\\Seen \\Answered $Forwarded))\r\n")
	r := NewReader(&repeatReader{b: line}, Responses, 16<<10)
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Next(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRelayLiteral(b *testing.B) {
	res := []byte("* 1 FETCH (BODY[] {65536}\r\n" + strings.Repeat("x", 65536) + ")\r\n")
	r := NewReader(&repeatReader{b: res}, Responses, 32<<10)
	b.SetBytes(int64(len(res)))
	b.ReportAllocs()
	for b.Loop() {
		for end := false; !end; {
			s, err := r.Next()
			if err != nil {
				b.Fatal(err)
			}
			end = s.End
		}
	}
}

func TestRelayingAllocatesNothing(t *testing.T) {
	r := NewReader(&repeatReader{b: []byte("* 1 FETCH (BODY[] {100}\r\n" + strings.Repeat("x", 100) + " FLAGS ())\r\n")}, Responses, 4<<10)
	read := func() {
		for end := false; !end; {
			s, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			end = s.End
		}
	}
	for range 100 {
		read() // grows the buffer
	}
	if n := testing.AllocsPerRun(1000, read); n != 0 {
		t.Errorf("%v allocations a response", n)
	}
}

// repeatReader returns the same bytes forever.
type repeatReader struct {
	b   []byte
	pos int
}

func (r *repeatReader) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.pos:])
	r.pos = (r.pos + n) % len(r.b)
	return n, nil
}

// chunkReader splits a stream into reads of the given sizes, cyclically.
type chunkReader struct {
	b     []byte
	sizes []byte
	i     int
}

func (c *chunkReader) Read(p []byte) (int, error) {
	if len(c.b) == 0 {
		return 0, io.EOF
	}
	n := 1
	if len(c.sizes) > 0 {
		n = int(c.sizes[c.i%len(c.sizes)])%64 + 1
		c.i++
	}
	n = copy(p[:min(n, len(p))], c.b)
	c.b = c.b[n:]
	return n, nil
}

// referenceFrames frames commands independently of Reader: it has the whole stream, and every
// LF outside literals ends a line. It returns the stream with CRLF at those places, the ends,
// and the number of bare LFs.
func referenceFrames(stream []byte) (all []byte, ends []int, bareLFs int) {
	for pos := 0; ; {
		i := bytes.IndexByte(stream[pos:], '\n')
		if i < 0 {
			return all, ends, bareLFs
		}
		line, isCRLF := strings.CutSuffix(string(stream[pos:pos+i]), "\r")
		if !isCRLF {
			bareLFs++
		}
		all = append(append(all, line...), "\r\n"...)
		pos += i + 1
		var n int64
		open := false
		for j := 0; j < len(line); j++ {
			if open && line[j] == '\\' {
				j++
			} else if line[j] == '"' {
				open = !open
			}
		}
		if b := strings.LastIndexByte(line, '{'); b >= 0 && strings.HasSuffix(line, "}") && !open {
			size, ok := parseNumber([]byte(strings.TrimSuffix(line[b+1:len(line)-1], "+")))
			if n = size; !ok || n > int64(len(stream)-pos) {
				return all, ends, bareLFs
			}
			all = append(all, stream[pos:pos+int(n)]...)
			pos += int(n)
			continue
		}
		ends = append(ends, len(all))
	}
}

func FuzzLiteralFraming(f *testing.F) {
	f.Add([]byte("a LOGIN {5}\r\nalice {2+}\r\npw\r\nb NOOP\r\n"), []byte{1})
	f.Add([]byte("a X \"{5}\r\nb ~{3}\r\n\x00\r\n\r\n"), []byte{3, 9})
	f.Add([]byte(strings.Repeat("x", 600)+" {1}\r\n\n\r\n"), []byte{63})
	f.Add([]byte("a LOGIN {2}\nx\n {1+}\ny\nb NOOP\n\nc NOOP\r\n"), []byte{0})
	f.Add([]byte("a NOOP\r\nb X {3}\nx\ny\nc NOOP\n"), []byte{15, 2, 3})
	f.Add([]byte("a "+strings.Repeat("x", 509)+"\nb NOOP\r\n"), []byte{63})
	f.Add([]byte("a {"+strings.Repeat("0", 600)+"}\r\nb NOOP\r\n"), []byte{63})
	f.Add([]byte(strings.Repeat("x", 478)+"{"+strings.Repeat("0", 400)+"+}\r\nb NOOP\r\n"), []byte{63})
	f.Fuzz(func(t *testing.T, stream, sizes []byte) {
		want, wantEnds, bareLFs := referenceFrames(stream)
		for _, src := range []io.Reader{bytes.NewReader(stream), &chunkReader{b: stream, sizes: sizes}} {
			all, ends, err := readFrames(NewReader(src, Commands, 512))
			last := 0
			if n := len(ends); n > 0 {
				last = ends[n-1]
			}
			switch {
			case len(ends) > len(wantEnds) || !slices.Equal(ends, wantEnds[:len(ends)]) || !bytes.Equal(all[:last], want[:last]):
				t.Fatalf("%q with ends at %v, the reference has %q, %v", all, ends, want, wantEnds)
			case len(ends) < len(wantEnds) && (bareLFs == 0 || !errors.Is(err, ErrLineEnding)):
				t.Fatalf("ends %v, the reference has %v: %v", ends, wantEnds, err)
			}
		}
	})
}

// A bare LF ends a command line only if no bytes after it were read; otherwise it is an error.
func TestBareLFEndsALineAtTheEndOfARead(t *testing.T) {
	const limit = 1000
	full := "a " + strings.Repeat("x", minBuffer-len("a \n")) + "\n" // fills the first read
	for _, tc := range []struct {
		reads string // separated by "|"
		lines string // as ReadLine returns them; "!" marks ErrLineEnding
	}{
		{"a\n", "a"},
		{"\n", ""},
		{"a\n|b\r\n|c\n", "a|b|c"},
		{"a\r\nb\n|c\r\n", "a|b|c"},
		{"a|\n|b\n", "a|b"},
		{"a\r|\n|\r\n", "a|"},
		{"a\r|b\n", "a\rb"},
		{"a\nb\n|c\n", "!a\nb|c"},
		{"a\nb\r\nc\n", "!a\nb|c"},
		{"a\nb|c\n|d\n", "!a\nbc|d"},
		{"\n\n|a\n", "!\n|a"},
		{"a\n\r|\nb\n", "!a\n|b"},
		{full + "|b\r\n|c\n", "!" + full + "b|c"},
	} {
		r := NewReader(newChunkSource(tc.reads), Commands, 8192)
		var lines []string
		for {
			line, err := r.ReadLine(limit)
			switch {
			case errors.Is(err, ErrLineEnding):
				line = append([]byte("!"), line...)
			case err != nil && err != io.EOF:
				t.Errorf("%q: %v", tc.reads, err)
			}
			if err == io.EOF {
				break
			}
			lines = append(lines, string(line))
		}
		if got := strings.Join(lines, "|"); got != tc.lines {
			t.Errorf("%.40q: lines %q, want %q", tc.reads, got, tc.lines)
		}
		all, _, err := readFrames(NewReader(newChunkSource(tc.reads), Commands, 8192))
		accepted, isRejected := tc.lines, strings.Contains(tc.lines, "!")
		if isRejected {
			accepted = accepted[:strings.IndexByte(accepted, '!')]
		} else {
			accepted += "|"
		}
		if want := strings.ReplaceAll(accepted, "|", "\r\n"); string(all) != want || errors.Is(err, ErrLineEnding) != isRejected {
			t.Errorf("%.40q: framed as %q, want %q; %v", tc.reads, all, want, err)
		}
	}
}

// A bare LF counts as one byte of its line. It also ends a line after a LinePart, and a skipped
// line.
func TestLongLineMayEndInBareLF(t *testing.T) {
	long := strings.Repeat("x", 2000)
	r := NewReader(strings.NewReader(long+"\n"), Commands, 512)
	if all, ends, err := readFrames(r); err != io.EOF || string(all) != long+"\r\n" || fmt.Sprint(ends) != "[2002]" {
		t.Errorf("%d bytes, ends %v, %v", len(all), ends, err)
	}
	for limit, want := range map[int]error{2001: nil, 2000: ErrLineTooLong} {
		if _, err := NewReader(strings.NewReader(long+"\n"), Commands, 8192).ReadLine(limit); !errors.Is(err, want) {
			t.Errorf("limit %d: %v", limit, err)
		}
	}
	for end, want := range map[string]error{"\n": ErrLineSkipped, "\r\n": ErrLineSkipped, "\nb NOOP\r\n": ErrLineTooLong, "\nb NOOP\n": ErrLineTooLong} {
		if _, err := NewReader(strings.NewReader(long+end), Commands, 8192).ReadOrSkipLine(1000, 4000); !errors.Is(err, want) {
			t.Errorf("%q: %v", end, err)
		}
	}
}

// chunkedTryReader is a TryReader whose bytes have arrived up to the next chunk boundary.
type chunkedTryReader struct {
	chunks   []string
	tryReads int
}

func (a *chunkedTryReader) Read(p []byte) (int, error) {
	if len(a.chunks) == 0 {
		return 0, io.EOF
	}
	n := copy(p, a.chunks[0])
	if a.chunks[0] = a.chunks[0][n:]; a.chunks[0] == "" {
		a.chunks[0] = "|" // the boundary
	}
	if n == 0 || p[0] == '|' {
		a.chunks = a.chunks[1:]
		return a.Read(p)
	}
	return n, nil
}

func (a *chunkedTryReader) TryRead(p []byte) (int, error) {
	a.tryReads++
	if len(a.chunks) == 0 || a.chunks[0] == "|" {
		return 0, errors.New("nothing")
	}
	return a.Read(p)
}

// The result does not depend on whether the line ends at the end of the buffer.
func TestLineThatFillsTheBufferMayEndInBareLF(t *testing.T) {
	for _, size := range []int{minBuffer, 1024, 2048, 4096} {
		for n := size - 1; n <= min(size+1, 4096); n++ {
			line := strings.Repeat("x", n-1)
			for following, want := range map[string]error{"": io.EOF, "b\r\n": ErrLineEnding, "\n": ErrLineEnding, "\r\n": ErrLineEnding} {
				src := &chunkedTryReader{chunks: []string{line + "\n" + following, "c\r\n"}}
				all, _, err := readFrames(NewReader(src, Commands, 4096))
				accepted := line + "\r\nc\r\n"
				if want != io.EOF {
					accepted = ""
				}
				if string(all) != accepted || !errors.Is(err, want) || src.tryReads > 1 {
					t.Errorf("%d bytes and %q: %d bytes are framed, %d calls of TryRead, %v", n, following, len(all), src.tryReads, err)
				}
			}
			src := &chunkedTryReader{chunks: []string{line[1:] + "\r\n", "c\r\n"}}
			if all, _, err := readFrames(NewReader(src, Commands, 4096)); len(all) != n+len("\nc\r\n")-1 || err != io.EOF || src.tryReads > 0 {
				t.Errorf("%d bytes and CRLF: %d bytes are framed, %d calls of TryRead, %v", n, len(all), src.tryReads, err)
			}
			r := NewReader(&chunkedTryReader{chunks: []string{line + "\n"}}, Commands, 4096)
			if got, err := r.ReadLine(4096); string(got) != line || err != nil {
				t.Errorf("%d bytes: a line of %d, %v", n, len(got), err)
			}
		}
	}
}

// newChunkSource returns a source whose reads return the pieces of text between bars.
func newChunkSource(text string) io.Reader {
	var all []io.Reader
	for piece := range strings.SplitSeq(text, "|") {
		all = append(all, strings.NewReader(piece))
	}
	return io.MultiReader(all...)
}

func TestBufferedSegmentsAreContiguousUntilFill(t *testing.T) {
	const stream = "* 1 FETCH (BODY[] {5}\r\nhello)\r\n* 2 EXISTS\r\na OK\r\n* 3 EX"
	r := NewReader(strings.NewReader(stream), Responses, 512)
	if _, ok, err := r.NextBuffered(); ok || err != nil {
		t.Fatalf("ready before anything was read: %v, %v", ok, err)
	}
	if err := r.Fill(); err != nil {
		t.Fatal(err)
	}
	var run []byte
	for {
		s, ok, err := r.NextBuffered()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if run == nil {
			run = s.Bytes
			continue
		}
		run = run[:len(run)+len(s.Bytes)]
	}
	if want := stream[:len(stream)-len("* 3 EX")]; string(run) != want || !r.AtBoundary() {
		t.Errorf("%q, at boundary %v", run, r.AtBoundary())
	}
	old := r.SwapBuffer(make([]byte, 6))
	if len(old) != 512 || string(r.Peek()) != "* 3 EX" {
		t.Errorf("old buffer of %d bytes, %q is unread", len(old), r.Peek())
	}
	if err := r.Fill(); err != io.ErrUnexpectedEOF {
		t.Errorf("the end inside a line: %v", err)
	}
}
