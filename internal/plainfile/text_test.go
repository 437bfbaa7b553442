package plainfile

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestWindowsTextIsDecoded(t *testing.T) {
	for text, c := range map[string]struct {
		want string
		err  error
	}{
		"":                       {"", nil},
		"a":                      {"a", nil},
		"plain":                  {"plain", nil},
		"\xef\xbb\xbf":           {"", nil},
		"\xef\xbb\xbfmarked":     {"marked", nil},
		"within \xef\xbb\xbfit":  {"within \xef\xbb\xbfit", nil},
		"\xff\xfea\x00":          {"", ErrUTF16},
		"\xfe\xff\x00a":          {"", ErrUTF16},
		"\xff\xfe":               {"", ErrUTF16},
		"\xfelatin in this case": {"\xfelatin in this case", nil},
	} {
		got, err := DecodeText([]byte(text))
		if string(got) != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
		r, err := NewTextReader(iotest.OneByteReader(strings.NewReader(text)))
		if !errors.Is(err, c.err) {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil {
			continue
		}
		if got, err := io.ReadAll(r); string(got) != c.want || err != nil {
			t.Errorf("%q read: %q, %v", text, got, err)
		}
	}
}
