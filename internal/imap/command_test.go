package imap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func readCommand(stream string) (cmd Command, continuations int, rest string, err error) {
	r := NewReader(iotest.OneByteReader(strings.NewReader(stream)), Commands, MaxLongLine)
	cmd, err = r.ReadCommand(PreauthLimits, func() error { continuations++; return nil })
	b, _ := io.ReadAll(r.src)
	return cmd, continuations, string(r.TakeBuffered()) + string(b), err
}

func TestReadCommandReadsEveryKindOfString(t *testing.T) {
	for _, tc := range []struct {
		stream        string
		want          string
		continuations int
	}{
		{"a1 noop\r\n", "{a1 NOOP []}", 0},
		{"a LOGIN joe pw=\r\n", "{a LOGIN [{0 joe} {0 pw=}]}", 0},
		{"a LOGIN \"j\\\"o\\\\e\" \"p w\"\r\n", "{a LOGIN [{1 j\"o\\e} {1 p w}]}", 0},
		{"a LOGIN {3}\r\njoe {2}\r\npw\r\n", "{a LOGIN [{2 joe} {2 pw}]}", 2},
		{"a LOGIN {3+}\r\njoe {2+}\r\n\r\n\r\n", "{a LOGIN [{2 joe} {2 \r\n}]}", 0},
		{"a LOGIN ~{3+}\r\njoe \"\"\r\n", "{a LOGIN [{2 joe} {1 }]}", 0},
		{"a ID (\"name\" \"x\" \"v\" NIL)\r\n", "{a ID [{3 (} {1 name} {1 x} {1 v} {0 NIL} {4 )}]}", 0},
		{"a ID ({4}\r\nname {1+}\r\nx)\r\n", "{a ID [{3 (} {2 name} {2 x} {4 )}]}", 1},
		{"a ID NIL\r\n", "{a ID [{0 NIL}]}", 0},
		{"a AUTHENTICATE PLAIN =\r\n", "{a AUTHENTICATE [{0 PLAIN} {0 =}]}", 0},
		{"a AUTHENTICATE PLAIN AGEAYg==\r\n", "{a AUTHENTICATE [{0 PLAIN} {0 AGEAYg==}]}", 0},
		{"a STARTTLS {0+}\r\n\r\n", "{a STARTTLS [{2 }]}", 0},
		{". noop\n", "{. NOOP []}", 0},
		{"a LOGIN {3}\njoe {2+}\n\n\n\n", "{a LOGIN [{2 joe} {2 \n\n}]}", 1}, // each read returns one byte
	} {
		cmd, continuations, rest, err := readCommand(tc.stream + "next")
		if got := fmt.Sprint(cmd); err != nil || got != tc.want || continuations != tc.continuations || rest != "next" {
			t.Errorf("%q: %s, continuations %d, rest %q, %v", tc.stream, got, continuations, rest, err)
		}
	}
}

func TestReadCommandResyncsAfterSyntaxError(t *testing.T) {
	for _, line := range []string{
		"", " ", "a", "a ", " a", "a  NOOP", "a NOOP ", "a\tNOOP", "+ NOOP", "* NOOP", "a%n\x00 NOOP", "a+ NOOP", "a( NOOP",
		strings.Repeat("t", 127) + " NOOP", "a N\xffOP", "a LOGIN joe  pw", "a LOGIN \"joe pw", "a LOGIN \"jo\\e\" pw",
		"a LOGIN joe\"x\" pw", "a LOGIN \"joe\"pw", "a LOGIN (joe", "a ID ((", "a ID ())", "a ID )", "a LOGIN j{5} pw",
		"a LOGIN {5}x pw", "a LOGIN {-1}", "a LOGIN {5 }", "a LOGIN {0x5}", "a LOGIN {05}", "a LOGIN {}",
		"a LOGIN {18446744073709551616}", "a LOGIN \"\x00\" pw", "a LOGIN \"a\rb\" pw", "a LOGIN jo\re pw", "a LOGIN j\x7f pw", "a LOGIN \xc3\xa9 pw",
		"a LOGIN \"x {5}", "a ID (\"a\" \"b\"", "a LOGIN {\"5\"}", "a LOGIN ~ {5", "a LOGIN ~{x}",
	} {
		cmd, continuations, rest, err := readCommand(line + "\r\nnext")
		var syntax *SyntaxError
		if !errors.As(err, &syntax) || errors.Is(err, ErrDesynced) || continuations != 0 || rest != "next" {
			t.Errorf("%q: %v, continuations %d, rest %q, %v", line, cmd, continuations, rest, err)
			continue
		}
		if syntax.Tag != "" && syntax.Tag != "a" {
			t.Errorf("%q: tag %q", line, syntax.Tag)
		}
	}
}

func TestLineWithBareLFInsideIsRejected(t *testing.T) {
	for stream, want := range map[string]error{
		"a NOOP\nb NOOP\r\nz NOOP\r\n":                              nil,
		"a NOOP\nb NOOP\n":                                          nil,
		"a LOGIN \"joe\nb NOOP\nc NOOP\" pw\r\nz NOOP\r\n":          nil,
		"a LOGIN {3+}\r\njoe x\nb NOOP\r\nz NOOP\r\n":               nil,
		"a STARTTLS\nb NOOP\r\nz NOOP\r\n":                          nil,
		"a LOGIN {8}\nb NOOP\r\n pw\r\nz NOOP\r\n":                  ErrDesynced,
		"a LOGIN {8+}\nb NOOP\r\n pw\r\nz NOOP\r\n":                 ErrDesynced,
		"a NOOP\nb LOGIN {8}\r\nc NOOP\r\n pw\r\nz NOOP\r\n":        ErrDesynced,
		"a X {3+}\r\njoe {8+}\nb NOOP\r\n pw\r\nz NOOP\r\n":         ErrDesynced,
		"a LOGIN joe " + strings.Repeat("x", 9000) + "\nz NOOP\r\n": ErrLineTooLong,
		"a ID " + strings.Repeat("x", MaxLongLine) + "\nb NOOP\r\n": ErrLineTooLong,
	} {
		r := NewReader(strings.NewReader(stream), Commands, MaxLongLine)
		r.buf = make([]byte, PreauthLimits.Line) // one read returns everything
		_, err := r.ReadCommand(PreauthLimits, func() error { return errors.New("continuation requested") })
		var syntax *SyntaxError
		if want != nil && !errors.Is(err, want) || want == nil && (!errors.As(err, &syntax) || errors.Is(err, ErrDesynced)) {
			t.Errorf("%.40q: %v", stream, err)
		}
		if rest := string(r.Peek()); want == nil && rest != "" && rest != "z NOOP\r\n" {
			t.Errorf("%.40q: %q is unread", stream, rest)
		}
	}
}

func TestReadCommandRejectsOversizedLiterals(t *testing.T) {
	for line, want := range map[string]int{
		"a LOGIN {8193}\r\n":                                   0,
		"a LOGIN {4294967295}\r\n":                             0,
		"a LOGIN {9223372036854775807}\r\n":                    0,
		"a LOGIN {1}\r\nx {8192}\r\n":                          1,
		"a X {1}\r\nx {1}\r\nx {1}\r\nx {1}\r\nx {1}\r\n":      4,
		"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx {1}\r\nx": 0,
	} {
		cmd, continuations, _, err := readCommand(line)
		if !errors.Is(err, ErrLiteralTooBig) && !errors.Is(err, ErrLineSkipped) || errors.Is(err, ErrDesynced) || continuations != want || cmd.Tag != "a" {
			t.Errorf("%q: continuations %d, %v", line, continuations, err)
		}
	}
}

func TestReadCommandFailsOnUnwantedNonSyncLiteral(t *testing.T) {
	for _, line := range []string{"a LOGIN {8193+}\r\n", "a LOGIN {05+}\r\n", "a LOGIN {+}\r\n", "a LOGIN \"x {5+}\r\n", "* LOGIN {5+}\r\n",
		"a X {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\nx {1+}\r\n", "a LOGIN joe {99999999999999999999+}\r\n", "a LOGIN {05+}\n", "a ID (({3+}\r\n"} {
		if _, continuations, _, err := readCommand(line + "b NOOP\r\n"); !errors.Is(err, ErrDesynced) || continuations != 0 {
			t.Errorf("%q: continuations %d, %v", line, continuations, err)
		}
	}
	if _, _, _, err := readCommand("a " + strings.Repeat("x", 9000)); !errors.Is(err, ErrLineTooLong) {
		t.Errorf("%v", err)
	}
	cmd, _, rest, err := readCommand("a LOGIN {3}\r\njoex\r\nnext")
	var syntax *SyntaxError
	if !errors.As(err, &syntax) || rest != "next" {
		t.Errorf("after a literal: %v %q %v", cmd, rest, err)
	}
}

func TestOnlyAuthenticateAndIDMayBeLongPreauth(t *testing.T) {
	text := strings.Repeat("x", MaxLongLine+1)
	fits := func(head string, limit int) string { return head + text[:limit-len(head)-2] + "\r\n" }
	for what, c := range map[string]struct {
		stream string
		want   error
	}{
		"AUTHENTICATE of the longest line": {fits("a authenticate X ", MaxLongLine), nil},
		"one byte longer":                  {fits("a AUTHENTICATE X ", MaxLongLine+1), ErrLineSkipped},
		"the longest line that is skipped": {"a AUTHENTICATE X " + strings.Repeat("x", MaxLongLine+maxSkip-19) + "\r\n", ErrLineSkipped},
		"longer than that":                 {"a AUTHENTICATE X " + strings.Repeat("x", MaxLongLine+maxSkip-18) + "\r\n", ErrLineTooLong},
		"without an end":                   {"a AUTHENTICATE X " + strings.Repeat("x", 1<<20), ErrLineTooLong},
		"LOGIN of the longest line":        {fits("a LOGIN x ", 8192), nil},
		"LOGIN":                            {fits("a LOGIN x ", 8193), ErrLineTooLong},
		"AUTHENTICATES":                    {fits("a AUTHENTICATES x ", 8193), ErrLineTooLong},
		"a tag":                            {fits("AUTHENTICATE", 8193), ErrLineTooLong},
		"a long tag":                       {fits(text[:200]+" AUTHENTICATE ", 8193), ErrLineTooLong},
		"ID in one line":                   {"a ID (" + strings.Repeat(`"`+text[:30]+`" "`+text[:1024]+`" `, 29) + "x y)\r\n", nil},
		"ID in literals":                   {"a ID (" + strings.Repeat("{30+}\r\n"+text[:30]+" {1024+}\r\n"+text[:1024]+" ", 29) + "x y)\r\n", nil},
		"ID in too many literals":          {"a ID (" + strings.Repeat("{1+}\r\nx ", 60) + "{1}\r\nx)\r\n", ErrLiteralTooBig},
		"ID in too large literals":         {"a ID (" + strings.Repeat("{1024+}\r\n"+text[:1024]+" ", 31) + "{1024}\r\n", ErrLiteralTooBig},
		"lines and a literal of ID":        {"a ID (" + text[:20<<10] + " {13000}\r\n", ErrLiteralTooBig},
		"lines of LOGIN together":          {"a LOGIN " + strings.Repeat("{1+}\r\nx "+text[:5<<10]+" ", 4) + "\r\n", ErrLineTooLong},
		"a skipped line with a literal":    {"a ID " + text + "{5+}\r\n", ErrDesynced},
	} {
		cmd, _, _, err := readCommand(c.stream)
		if !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if errors.Is(c.want, ErrLineSkipped) && (cmd.Tag != "a" || cmd.Name != "AUTHENTICATE" || len(cmd.Args) > 0) {
			t.Errorf("%s: read as %.100v", what, cmd)
		}
	}
}

func TestBufferOfLongCommandIsReleased(t *testing.T) {
	stream := "a NOOP\r\nb ID (x " + strings.Repeat("x", MaxLongLine/2) + ")\r\n"
	r := NewReader(iotest.OneByteReader(strings.NewReader(stream+"c NOOP\r\n")), Commands, MaxLongLine)
	sizes := ""
	for range 3 {
		if _, err := r.ReadCommand(PreauthLimits, nil); err != nil {
			t.Fatal(err)
		}
		sizes += fmt.Sprint(r.BufferSize(), " ")
	}
	if sizes != fmt.Sprintf("%d %d %d ", minBuffer, MaxLongLine, minBuffer) {
		t.Errorf("buffers of %s", sizes)
	}
}

func FuzzClientCommand(f *testing.F) {
	for _, s := range []string{"a LOGIN {3}\r\njoe {2+}\r\npw\r\n", "a ID (\"a\" NIL)\r\n", "a AUTHENTICATE PLAIN =\r\n", "x \"\\\"\"\r\n", "a LOGIN {8193+}\r\n",
		"a NOOP\nb LOGIN {2}\nx\n y\nc NOOP\r\n", "a LOGIN \"x\nb NOOP\n\" y\r\nc NOOP\n", "a X {3+}\r\nabc y\nb NOOP\r\nc {1+}\nz"} {
		f.Add([]byte(s), []byte{0, 7})
	}
	f.Fuzz(func(t *testing.T, stream, sizes []byte) {
		type result struct {
			Cmd           Command
			Err           string
			Continuations int
		}
		run := func(src io.Reader) (all []result) {
			r, long := NewReader(src, Commands, MaxLongLine), false
			for {
				var res result
				var err error
				res.Cmd, err = r.ReadCommand(PreauthLimits, func() error { res.Continuations++; return nil })
				if err != nil {
					res.Err = err.Error()
				}
				all = append(all, res)
				var syntax *SyntaxError
				if err != nil && (!errors.As(err, &syntax) && !errors.Is(err, ErrLiteralTooBig) && !errors.Is(err, ErrLineSkipped) || errors.Is(err, ErrDesynced)) {
					return all
				}
				long = long || res.Cmd.Name == "ID" || res.Cmd.Name == "AUTHENTICATE" // later commands share its buffer
				if len(r.buf) > MaxLongLine || len(r.buf) > PreauthLimits.Line && !long {
					t.Fatalf("the buffer grew to %d", len(r.buf))
				}
				checkRoundTrip(t, res.Cmd, err)
			}
		}
		whole := run(bytes.NewReader(stream))
		split := run(&chunkReader{b: stream, sizes: sizes})
		switch {
		case bytes.Count(stream, []byte("\n")) == bytes.Count(stream, []byte("\r\n")):
			if !reflect.DeepEqual(whole, split) {
				t.Fatalf("chunking changed the commands:\n%v\n%v", whole, split)
			}
		case len(stream) < minBuffer: // no line fills the buffer
			lines := run(&lineReader{stream})
			for _, some := range [][]result{whole, split} {
				left := lines
				for _, c := range some {
					i := slices.IndexFunc(left, func(l result) bool { return reflect.DeepEqual(l, c) })
					if c.Err == "" && i < 0 {
						t.Fatalf("%v is not in %v, or out of order", c, lines)
					}
					left = left[i+1:]
				}
			}
		}
	})
}

// lineReader returns one line per read.
type lineReader struct{ b []byte }

func (l *lineReader) Read(p []byte) (int, error) {
	if len(l.b) == 0 {
		return 0, io.EOF
	}
	n := bytes.IndexByte(l.b, '\n') + 1
	if n == 0 {
		n = len(l.b)
	}
	n = copy(p, l.b[:n])
	l.b = l.b[n:]
	return n, nil
}

// checkRoundTrip verifies that a command is unchanged after appendCommand and ReadCommand.
func checkRoundTrip(t *testing.T, cmd Command, err error) {
	if err != nil {
		return
	}
	limits := Limits{Line: 1 << 20, Tag: 126, LiteralBytes: 1 << 20, Size: 1 << 20, LiteralCount: 1 << 10, Parens: 10}
	r := NewReader(bytes.NewReader(appendCommand(nil, cmd)), Commands, 1<<20)
	again, err := r.ReadCommand(limits, func() error { return errors.New("continuation requested") })
	if err != nil || again.Tag != cmd.Tag || again.Name != cmd.Name || len(again.Args) != len(cmd.Args) {
		t.Fatalf("%v became %v, %v", cmd, again, err)
	}
	for i, a := range again.Args {
		if a.Text != cmd.Args[i].Text {
			t.Fatalf("argument %d of %v became %q", i, cmd, a.Text)
		}
	}
}

// Before login a command has few arguments, so that its memory is at most a few times its
// octets.
func TestArgumentCountIsLimited(t *testing.T) {
	for in, want := range map[string]string{
		"a LOGIN" + strings.Repeat(" x", 16) + "\r\n":                               "",
		"a LOGIN" + strings.Repeat(" x", 17) + "\r\n":                               "Too many arguments.",
		"a AUTHENTICATE" + strings.Repeat(" x", 17) + "\r\n":                        "Too many arguments.",
		"a ID (" + strings.Repeat(`"x" "y" `, 30) + `"x")` + "\r\n":                 "",
		"a ID (" + strings.Repeat("x ", 15000) + "{1}\r\n":                          "Too many arguments.",
		"a LOGIN" + strings.Repeat(" x", 16) + " {3}\r\n":                           "Too many arguments.",
		"a LOGIN" + strings.Repeat(" x", 15) + " {3}\r\nabc\r\n":                    "",
		"a ID (" + strings.Repeat(`"x" "y" `, 30) + strings.Repeat(`"x" `, 4) + ")": "",
	} {
		r := NewReader(strings.NewReader(in+"\r\n"), Commands, MaxLongLine)
		_, err := r.ReadCommand(PreauthLimits, func() error { return nil })
		var syntax *SyntaxError
		if got := ""; errors.As(err, &syntax) {
			got = syntax.Text
			if got != want && want != "" {
				t.Errorf("%.40q: %q", in, got)
			}
		} else if want != "" {
			t.Errorf("%.40q: %v", in, err)
		}
	}
}

// appendCommand appends c with CRLF. Strings that cannot be quoted become non-synchronising
// literals.
func appendCommand(dst []byte, c Command) []byte {
	dst = append(append(append(dst, c.Tag...), ' '), c.Name...)
	space := true
	for _, t := range c.Args {
		if space && t.Kind != CloseParen {
			dst = append(dst, ' ')
		}
		space = t.Kind != OpenParen
		dst = appendToken(dst, t)
	}
	return append(dst, '\r', '\n')
}

// appendToken appends t.
func appendToken(dst []byte, t Token) []byte {
	if t.Kind == QuotedString {
		if quoted, err := AppendQuoted(dst, t.Text); err == nil {
			return quoted
		}
	}
	if t.Kind == QuotedString || t.Kind == LiteralString {
		dst = AppendLiteral(dst, t.Text, Literal{NonSync: true})
	}
	return append(dst, t.Text...)
}
