// Package sanitize makes text of other hosts and people harmless to a terminal, a log and its
// reader. It does not know JSON, nor IMAP.
package sanitize

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ASCII returns at most maxBytes of text in printable ASCII: "?" replaces any other character.
func ASCII(text string, maxBytes int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), maxBytes)])
}

// Line returns text as one line of at most maxBytes, with a space for each unsafe character and
// without bytes that are not UTF-8.
func Line(text string, maxBytes int) string {
	text = strings.Map(func(r rune) rune {
		if IsUnsafe(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	return strings.ToValidUTF8(text[:min(len(text), maxBytes)], "")
}

// Quote returns text unchanged if it is UTF-8 without unsafe characters, and quoted in ASCII
// otherwise.
func Quote(text string) string {
	if !utf8.ValidString(text) || strings.ContainsRune(text, utf8.RuneError) || strings.ContainsFunc(text, IsUnsafe) {
		return fmt.Sprintf("%+q", text)
	}
	return text
}

// IsUnsafe reports whether r is invisible, breaks lines, or changes the text direction: control
// characters, U+2028, U+2029, bidirectional controls, zero-width characters, the no-break space,
// tags, private and unassigned code points.
func IsUnsafe(r rune) bool {
	if r >= ' ' && r <= '~' {
		return false
	}
	return !unicode.IsGraphic(r) || r == '\u00a0' ||
		unicode.In(r, unicode.Bidi_Control, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}
