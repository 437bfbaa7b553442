package imap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func TestParseResponse(t *testing.T) {
	for line, want := range map[string]string{
		"* OK [CAPABILITY IMAP4rev1 ID] hi": `0 "" OK CAPABILITY "IMAP4rev1 ID" "hi"`,
		"* ok hi":                           `0 "" OK  "" "hi"`,
		"a1 NO [UNAVAILABLE] later":         `1 "a1" NO UNAVAILABLE "" "later"`,
		"a1 NO [BADCHARSET (\"x]y\" z)] no": `1 "a1" NO BADCHARSET "(\"x]y\" z)" "no"`,
		"a1 NO [x \"] no":                   `1 "a1" NO X "\"" "no"`,
		"a OK":                              `1 "a" OK  "" ""`,
		"+ idling":                          `2 ""   "" "idling"`,
		"+":                                 `2 ""   "" ""`,
		"* 5 EXISTS":                        `0 "" EXISTS  "" ""`,
		"* CAPABILITY A B":                  `0 "" CAPABILITY  "" "A B"`,
		"* BYE out":                         `0 "" BYE  "" "out"`,
		"L NO [REFERRAL imap://;AUTH=*@evil:243/] try": `1 "L" NO REFERRAL "imap://;AUTH=*@evil:243/" "try"`,
	} {
		r, err := ParseResponse([]byte(line))
		if got := fmt.Sprintf("%d %q %s %s %q %q", r.Kind, r.Tag, r.Name, r.Code, r.Arg, r.Text); err != nil || got != want {
			t.Errorf("%q: %s, want %s; %v", line, got, want, err)
		}
	}
	for _, line := range []string{"", " ", "*", "* ", "a FETCH", "a", "( OK x", "* OK [CODE", "a\x00 OK", "* 5 OK x", "a 5 OK x", "* 1 PREAUTH"} {
		if r, err := ParseResponse([]byte(line)); err == nil {
			t.Errorf("%q was read as %+v", line, r)
		}
	}
}

func FuzzBackendResponse(f *testing.F) {
	f.Add([]byte("a NO [BADCHARSET (\"x]\")] no\r\n* 1 FETCH (X {2}\r\nab)\r\n"), []byte{1})
	f.Fuzz(func(t *testing.T, stream, sizes []byte) {
		_, ends, _ := readFrames(NewReader(&chunkReader{b: stream}, Responses, 512))
		_, cut, _ := readFrames(NewReader(&chunkReader{b: stream, sizes: sizes}, Responses, 512))
		if fmt.Sprint(ends) != fmt.Sprint(cut) {
			t.Fatalf("chunking changed the ends: %v, %v", ends, cut)
		}
		line, _, _ := strings.Cut(string(stream), "\r\n")
		res, err := ParseResponse([]byte(line))
		if err == nil && res.Kind == Untagged && isStatus([]byte(line)) != res.IsStatus && res.IsStatus {
			t.Fatalf("framing and parsing disagree on %q", line)
		}
	})
}

func TestCapsKeepTheServersSpelling(t *testing.T) {
	c := ParseCaps("IMAP4rev1  auth=plain X]Y Id\x01 SASL-IR")
	if c.String() != "IMAP4rev1 auth=plain SASL-IR" || !c.Has("AUTH=PLAIN") || c.Has("ID") || !c.IsKnown() {
		t.Errorf("%q", c.String())
	}
	if got := c.Without(func(s string) bool { return strings.HasPrefix(s, "AUTH=") }); got.String() != "IMAP4rev1 SASL-IR" || got.Has("AUTH=PLAIN") {
		t.Errorf("%q", got.String())
	}
	if ParseCaps("").IsKnown() || (Caps{}).Has("X") {
		t.Error("an empty Caps is known")
	}
}

func TestParseSet(t *testing.T) {
	for in, want := range map[string]string{"1": "1", "1,4:9,12:*": "1,4:9,12:*", "9:4": "4:9", "*": "*", "*:3": "3:*", "4294967294": "4294967294"} {
		if s, err := ParseSet(in); err != nil || s.String() != want {
			t.Errorf("%q: %v %v", in, s, err)
		}
	}
	for _, in := range []string{"", "0", "01", "1,", ",1", "1:", "a", "4294967295", "4294967296", "1:2:3", "-1", strings.Repeat("1,", MaxRanges) + "1"} {
		if s, err := ParseSet(in); err == nil {
			t.Errorf("%.20q: %v", in, s.String())
		}
	}
	s, _ := ParseSet("2,5:*")
	for n, want := range map[uint32]bool{1: false, 2: true, 3: true, 4: true, 5: true, 6: false} {
		if s.Contains(n, 3) != want { // 5:* is 3:5 if the largest is 3
			t.Errorf("%d: %v", n, !want)
		}
	}
}

func FuzzParseSet(f *testing.F) {
	f.Add("1,4:9,12:*")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseSet(in)
		if err != nil {
			return
		}
		again, err := ParseSet(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q became %q, %v", s, again, err)
		}
	})
}

func TestAppendQuotedRejectsControlCharacters(t *testing.T) {
	for _, s := range []string{"a\r", "a\n", "a\x00", "\x7f", "é"} {
		if b, err := AppendQuoted(nil, s); !errors.Is(err, ErrUnquotable) {
			t.Errorf("%q became %q", s, b)
		}
	}
	if b, err := AppendQuoted(nil, `a"\b`); err != nil || string(b) != `"a\"\\b"` {
		t.Errorf("%q %v", b, err)
	}
}

func TestCancellationOverridesALaterDeadline(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	c := NewConn(server, Commands, 512)
	ctx, cancel := context.WithCancel(context.Background())
	release := c.BindContext(ctx)
	c.SetDeadline(time.Now().Add(time.Hour))
	cancel()
	if _, err := c.ReadLine(100); err == nil {
		t.Fatal("Read succeeded after the cancellation")
	}
	c.SetDeadline(time.Now().Add(time.Hour))
	if _, err := c.ReadLine(100); err == nil {
		t.Fatal("a later deadline overrode the cancellation")
	}
	if release() {
		t.Error("released before the cancellation")
	}
}

func TestUpgradeRejectsBufferedBytes(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	c := NewConn(server, Commands, 512)
	go func() { _, _ = client.Write([]byte("a STARTTLS\r\nb NOOP\r\n")) }()
	if _, err := c.ReadLine(100); err != nil {
		t.Fatal(err)
	}
	if err := c.Upgrade(func(nc net.Conn) net.Conn { return nc }); !errors.Is(err, ErrInjected) {
		t.Errorf("%v", err)
	}
	nc, rest := c.Detach()
	if nc != server || string(rest) != "b NOOP\r\n" {
		t.Errorf("%q", rest)
	}
}

func TestPeekDoesNotConsume(t *testing.T) {
	r := NewReader(strings.NewReader("a\r\n* b\r\n"), Responses, 512)
	if got := r.Peek(); len(got) != 0 {
		t.Errorf("before the first read: %q", got)
	}
	if _, err := r.ReadLine(100); err != nil {
		t.Fatal(err)
	}
	if got := string(r.Peek()); got != "* b\r\n" || r.Buffered() != len(got) || string(r.TakeBuffered()) != got {
		t.Errorf("%q", got)
	}
}
