package lease

import (
	"slices"
	"strings"
)

// Extensions is a set of extensions that change what a server says on a connection
// (RFC 5161): upper-case names in order, a space between two. It can be a key.
type Extensions string

// The names that the gateway itself looks for.
const (
	Condstore = "CONDSTORE" // RFC 7162
	Qresync   = "QRESYNC"   // RFC 7162; implies CONDSTORE
	UIDOnly   = "UIDONLY"   // RFC 9586
	Rev2      = "IMAP4REV2" // RFC 9051
)

// Has says whether name is in the set.
func (e Extensions) Has(name string) bool {
	for word := range strings.SplitSeq(string(e), " ") {
		if word == name {
			return true
		}
	}
	return false
}

// With is the set and names, however they are spelled, and what they imply.
func (e Extensions) With(names ...string) Extensions {
	words := append(strings.Fields(string(e)), names...)
	for i, word := range words {
		words[i] = strings.ToUpper(word)
	}
	if slices.Contains(words, Qresync) {
		words = append(words, Condstore) // RFC 7162 §3.2.3
	}
	slices.Sort(words)
	return Extensions(strings.Join(slices.Compact(words), " "))
}

// Without is the set without the names that other has.
func (e Extensions) Without(other Extensions) []string {
	return slices.DeleteFunc(strings.Fields(string(e)), other.Has)
}
