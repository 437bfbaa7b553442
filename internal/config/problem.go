package config

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// maxProblems bounds the problems that one error shows; a file with more is probably
	// not a configuration.
	maxProblems = 100
	// maxQuoted bounds a piece of the file quoted in a problem.
	maxQuoted = 64
)

// Problem is one problem and its position.
type Problem struct {
	Line   int    `json:"line,omitempty"` // from 1; 0: the file as a whole
	Column int    `json:"column,omitempty"`
	Key    string `json:"key,omitempty"` // listeners[1].tls; "" for the file as a whole
	Text   string `json:"text"`
}

// Format returns file:line:column: key: text, the form of compilers, which editors can
// parse.
func (p Problem) Format(file string) string {
	if p.Line > 0 {
		file += fmt.Sprintf(":%d:%d", p.Line, p.Column)
	}
	if p.Key != "" {
		file += ": " + p.Key
	}
	return file + ": " + p.Text
}

// InvalidError has all problems of a file.
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
		b.WriteString(p.Format(e.File) + "\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}

type position struct{ line, column int }

// problems collects problems and knows the position of each key.
type problems struct {
	list      []Problem
	positions map[string]position // by key
	badKeys   map[string]bool     // keys that have a problem
}

// addAt records a problem at a known position.
func (p *problems) addAt(pos position, key, format string, args ...any) {
	p.badKeys[key] = true
	p.list = append(p.list, Problem{Line: pos.line, Column: pos.column, Key: key, Text: fmt.Sprintf(format, args...)})
}

// add records a problem with a key. A key that is not in the file has the position
// of the nearest block that is. A key with a problem, or in a block with one, gets
// no second problem, which would only follow from the first.
func (p *problems) add(key, format string, args ...any) {
	for block := key; block != ""; block = parentKey(block) {
		if p.badKeys[block] {
			return
		}
	}
	p.addAt(p.nearestPosition(key), key, format, args...)
}

// nearestPosition returns the position of a key, or of the nearest block around it
// that is in the file.
func (p *problems) nearestPosition(key string) position {
	for key != "" && p.positions[key] == (position{}) {
		key = parentKey(key)
	}
	return p.positions[key]
}

func parentKey(key string) string { return key[:max(0, strings.LastIndexAny(key, ".["))] }

// err returns all problems as an *InvalidError, or nil.
func (p *problems) err(file string) error {
	if len(p.list) == 0 {
		return nil
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &InvalidError{File: file, Problems: p.list}
}

// quote quotes a piece of the file for a problem.
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

// MemberKey returns the key of a member of a block, as errors write it. A member
// that does not look like a key, such as a user name, is quoted.
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

// keyError is an error about the value of a key.
type keyError struct {
	key string
	err error
}

func (k *keyError) Error() string { return k.key + ": " + k.err.Error() }
func (k *keyError) Unwrap() error { return k.err }

// WithKey adds to an error the key it is about, such as tls.certificates[0].key. It
// is for files and addresses that are opened after Load. nil stays nil, and an error
// that has a key keeps it.
func WithKey(key string, err error) error {
	if _, hasKey := err.(*keyError); err == nil || hasKey {
		return err
	}
	return &keyError{key, err}
}

// File returns the path that the configuration was loaded from.
func (c *Config) File() string { return c.file }

// Hash returns the SHA-256 of the file, in hex.
func (c *Config) Hash() string { return hex.EncodeToString(c.hash[:]) }

// Locate converts errors of WithKey, joined or single, to the form of Load's errors:
// an *InvalidError with the position of each key in the file. A key that is left out
// has the position of the nearest block that is present; an error without a key has
// none. nil stays nil.
func (c *Config) Locate(err error) error {
	p := &problems{positions: c.positions, badKeys: make(map[string]bool)}
	p.addJoined("", err)
	return p.err(c.file)
}

// SplitErrors returns the parts of an error of errors.Join, nested joins included.
// Of nil it returns none.
func SplitErrors(err error) (parts []error) {
	joined, ok := err.(interface{ Unwrap() []error })
	switch {
	case err == nil:
		return nil
	case !ok || errors.Join(joined.Unwrap()...).Error() != err.Error(): // not a join, but one error with two causes
		return []error{err}
	}
	for _, part := range joined.Unwrap() {
		parts = append(parts, SplitErrors(part)...)
	}
	return parts
}

// addJoined records every part of a joined error separately.
func (p *problems) addJoined(key string, err error) {
	var pos position
	if key != "" {
		pos = p.nearestPosition(key)
	}
	for _, part := range SplitErrors(err) {
		if k, ok := part.(*keyError); ok {
			p.addJoined(k.key, k.err)
			continue
		}
		p.addAt(pos, key, "%s", part)
	}
}
