package imap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// frames reads a stream to its end and writes down where each command or
// response ends.
func frames(r *Reader) (all []byte, ends []int, err error) {
	for {
		s, err := r.Next()
		if err != nil {
			return all, ends, err
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
		all, ends, err := frames(NewReader(strings.NewReader(tc.stream), Responses, 512))
		if err != io.EOF || string(all) != tc.stream || fmt.Sprint(ends) != tc.ends {
			t.Errorf("%q: ends %v, want %v; %v", tc.stream, ends, tc.ends, err)
		}
	}
}

func TestACommandIsNeverTakenForAStatus(t *testing.T) {
	_, ends, err := frames(NewReader(strings.NewReader("a OK {3}\r\nabc\r\n"), Commands, 512))
	if err != io.EOF || fmt.Sprint(ends) != "[15]" {
		t.Errorf("ends %v, %v", ends, err)
	}
}

func TestALongLineComesInParts(t *testing.T) {
	for _, pad := range []int{400, 470, 480, 490, 500, 512, 600, 5000} {
		line := "* X \"" + strings.Repeat("\\\"", pad/2) + "\" {3}\r\n"
		stream := line + "a\r\n\r\n* 1 EXISTS\r\n"
		all, ends, err := frames(NewReader(strings.NewReader(stream), Responses, 512))
		if err != io.EOF || string(all) != stream || len(ends) != 2 || ends[0] != len(line)+5 {
			t.Errorf("%d: ends %v, %v", pad, ends, err)
		}
	}
}

func TestNextRefusesWhatCannotBeFramed(t *testing.T) {
	for _, s := range []string{"a\n", "\n", "a X {5}\n", "* OK\n"} {
		if _, _, err := frames(NewReader(strings.NewReader(s), Responses, 512)); !errors.Is(err, ErrLineEnding) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, n := range []string{"", "-1", "+", "5 ", "0x5", "05", "18446744073709551616", "9223372036854775808", "5++", "+5"} {
		if _, _, err := frames(NewReader(strings.NewReader("a X {"+n+"}\r\n"), Commands, 512)); !errors.Is(err, ErrLiteral) {
			t.Errorf("{%s}: %v", n, err)
		}
	}
	if _, _, err := frames(NewReader(strings.NewReader("a X {5}\r\nabc"), Commands, 512)); err != io.ErrUnexpectedEOF {
		t.Errorf("cut literal: %v", err)
	}
}

func TestReadLineKeepsItsLimit(t *testing.T) {
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
	if first != "a" || string(two) != "bc" || err != nil || string(r.Rest()) != "rest" || r.Buffered() != 0 {
		t.Errorf("%q %q %v", first, two, err)
	}
}

func BenchmarkRelayLine(b *testing.B) {
	line := []byte("* 4711 FETCH (UID 12345 FLAGS (\\Seen \\Answered $Forwarded))\r\n")
	r := NewReader(&repeat{b: line}, Responses, 16<<10)
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
	r := NewReader(&repeat{b: res}, Responses, 32<<10)
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
	r := NewReader(&repeat{b: []byte("* 1 FETCH (BODY[] {100}\r\n" + strings.Repeat("x", 100) + " FLAGS ())\r\n")}, Responses, 4<<10)
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
		read() // lets the buffer grow
	}
	if n := testing.AllocsPerRun(1000, read); n != 0 {
		t.Errorf("%v allocations a response", n)
	}
}

// repeat reads as the same bytes for ever.
type repeat struct {
	b  []byte
	at int
}

func (r *repeat) Read(p []byte) (int, error) {
	n := copy(p, r.b[r.at:])
	r.at = (r.at + n) % len(r.b)
	return n, nil
}

// chunked cuts a stream into reads of the sizes it is given, in turn.
type chunked struct {
	b     []byte
	sizes []byte
	i     int
}

func (c *chunked) Read(p []byte) (int, error) {
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

// reference frames commands in another way: it holds the whole stream.
func reference(stream []byte) (ends []int) {
	for at := 0; ; {
		i := bytes.IndexByte(stream[at:], '\n')
		if i < 1 || stream[at+i-1] != '\r' {
			return ends
		}
		line := string(stream[at : at+i-1])
		at += i + 1
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
			size, ok := number([]byte(strings.TrimSuffix(line[b+1:len(line)-1], "+")))
			if !ok {
				return ends
			}
			if n = size; n > int64(len(stream)-at) {
				return ends
			}
			at += int(n)
			continue
		}
		ends = append(ends, at)
	}
}

func FuzzLiteralFraming(f *testing.F) {
	f.Add([]byte("a LOGIN {5}\r\nalice {2+}\r\npw\r\nb NOOP\r\n"), []byte{1})
	f.Add([]byte("a X \"{5}\r\nb ~{3}\r\n\x00\r\n\r\n"), []byte{3, 9})
	f.Add([]byte(strings.Repeat("x", 600)+" {1}\r\n\n\r\n"), []byte{63})
	f.Add([]byte("a {"+strings.Repeat("0", 600)+"}\r\nb NOOP\r\n"), []byte{63})
	f.Add([]byte(strings.Repeat("x", 478)+"{"+strings.Repeat("0", 400)+"+}\r\nb NOOP\r\n"), []byte{63})
	f.Fuzz(func(t *testing.T, stream, sizes []byte) {
		all, ends, _ := frames(NewReader(bytes.NewReader(stream), Commands, 512))
		if !bytes.HasPrefix(stream, all) {
			t.Fatal("bytes changed")
		}
		cut, cutEnds, _ := frames(NewReader(&chunked{b: stream, sizes: sizes}, Commands, 512))
		if fmt.Sprint(ends) != fmt.Sprint(cutEnds) || len(ends) > 0 && !bytes.Equal(cut[:ends[len(ends)-1]], all[:ends[len(ends)-1]]) {
			t.Fatalf("chunking changed the ends: %v, %v", ends, cutEnds)
		}
		if want := reference(stream); fmt.Sprint(ends) != fmt.Sprint(want) {
			t.Fatalf("ends %v, the reference says %v", ends, want)
		}
	})
}

func TestReadySegmentsLieSideBySideUntilTheNextFill(t *testing.T) {
	const stream = "* 1 FETCH (BODY[] {5}\r\nhello)\r\n* 2 EXISTS\r\na OK\r\n* 3 EX"
	r := NewReader(strings.NewReader(stream), Responses, 512)
	if _, ok, err := r.Ready(); ok || err != nil {
		t.Fatalf("ready before anything was read: %v, %v", ok, err)
	}
	if err := r.Fill(); err != nil {
		t.Fatal(err)
	}
	var run []byte
	for {
		s, ok, err := r.Ready()
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
	if want := stream[:len(stream)-len("* 3 EX")]; string(run) != want || !r.Between() {
		t.Errorf("%q, between %v", run, r.Between())
	}
	old := r.Swap(make([]byte, 6))
	if len(old) != 512 || string(r.Peek()) != "* 3 EX" {
		t.Errorf("%d bytes of buffer came back, %q is unread", len(old), r.Peek())
	}
	if err := r.Fill(); err != io.ErrUnexpectedEOF {
		t.Errorf("the end inside a line: %v", err)
	}
}
