package sanitize

import "testing"

func TestUnsafeTextBecomesHarmless(t *testing.T) {
	for text, want := range map[string]struct{ ascii, line, quote string }{
		"":                      {"", "", ""},
		"plain {text}":          {"plain {text}", "plain {text}", "plain {text}"},
		"schön…":                {"sch?n?", "schön…", "schön…"},
		"a\x1b[2Jb\x7f":         {"a?[2Jb?", "a [2Jb ", `"a\x1b[2Jb\x7f"`},
		"a\r\nb\tc":             {"a??b?c", "a  b c", `"a\r\nb\tc"`},
		"a\u2028b\u202ec\u200b": {"a?b?c?", "a b c ", `"a\u2028b\u202ec\u200b"`},
		"a\u00a0b\ufe0f\u3164":  {"a?b??", "a b  ", `"a\u00a0b\ufe0f\u3164"`},
		"a\xffb":                {"a?b", "ab", `"a\xffb"`},
		"a\ufffdb":              {"a?b", "a\ufffdb", `"a\ufffdb"`},
		"0123456789abcdefghijk": {"0123456789abcdef", "0123456789abcdef", "0123456789abcdefghijk"},
		"0123456789abcdeö":      {"0123456789abcde?", "0123456789abcde", "0123456789abcdeö"},
	} {
		if got := ASCII(text, 16); got != want.ascii {
			t.Errorf("%q in ASCII: %q, want %q", text, got, want.ascii)
		}
		if got := Line(text, 16); got != want.line {
			t.Errorf("%q as a line: %q, want %q", text, got, want.line)
		}
		if got := Quote(text); got != want.quote {
			t.Errorf("%q quoted: %s, want %s", text, got, want.quote)
		}
	}
}
