package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxProblems bounds what one run shows; after so many the file is
	// probably not ours.
	maxProblems = 100
	// maxQuoted bounds a piece of the file quoted in a problem.
	maxQuoted = 64
)

// Problem is one thing wrong, and where.
type Problem struct {
	Line, Column int    // from 1; 0: the file as a whole
	Key          string // listeners[1].tls; "" for the file as a whole
	Text         string
}

// InvalidError is everything wrong with a file.
type InvalidError struct {
	File     string
	Problems []Problem // in the order of the file
}

// Error has a line for each problem: file:line:column: key: text.
func (e *InvalidError) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i == maxProblems {
			fmt.Fprintf(&b, "%s: and %d more\n", e.File, len(e.Problems)-i)
			break
		}
		b.WriteString(e.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
		if p.Key != "" {
			b.WriteString(p.Key + ": ")
		}
		b.WriteString(p.Text + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

type position struct{ line, column int }

// problems collects what is wrong, and knows where in the file each key is.
type problems struct {
	list      []Problem
	positions map[string]position // key → where it stands
	badKeys   map[string]bool     // keys that have a problem
}

// addAt notes a problem at a known place.
func (p *problems) addAt(pos position, key, format string, args ...any) {
	p.badKeys[key] = true
	p.list = append(p.list, Problem{Line: pos.line, Column: pos.column, Key: key, Text: fmt.Sprintf(format, args...)})
}

// add notes a problem with a key. One that is not in the file stands at the
// nearest block around it that is. A key in trouble already, or in a block that
// could not be read, has no second problem: it would be the first one's.
func (p *problems) add(key, format string, args ...any) {
	for block := key; block != ""; block = parentKey(block) {
		if p.badKeys[block] {
			return
		}
	}
	p.addAt(p.nearestPosition(key), key, format, args...)
}

// nearestPosition is where a key stands, or the nearest block around it that is in the file.
func (p *problems) nearestPosition(key string) position {
	for key != "" && p.positions[key] == (position{}) {
		key = parentKey(key)
	}
	return p.positions[key]
}

// parentKey is the key of the block that key is in.
func parentKey(key string) string { return key[:max(0, strings.LastIndexAny(key, ".["))] }

// err is nil, or everything that was found.
func (p *problems) err(file string) error {
	if len(p.list) == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &InvalidError{File: file, Problems: p.list}
}

// quote shows a piece of the file in a problem.
func quote(s string) string {
	if len(s) > maxQuoted {
		s = s[:maxQuoted]
		for !utf8.ValidString(s) && len(s) > maxQuoted-utf8.UTFMax {
			s = s[:len(s)-1]
		}
		return strconv.QuoteToGraphic(s) + "…"
	}
	return strconv.QuoteToGraphic(s)
}

// MemberKey is the key of a member of a block, as errors write it. A member that does not look like a key of ours
// (a user name, say) is quoted.
func MemberKey(key, member string) string {
	isKey := member != "" && len(member) <= maxQuoted && strings.Trim(member, "abcdefghijklmnopqrstuvwxyz0123456789_-") == ""
	switch {
	case !isKey:
		return key + "[" + quote(member) + "]"
	case key == "":
		return member
	}
	return key + "." + member
}
