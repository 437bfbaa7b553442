package imap

import (
	"slices"
	"strings"
)

// Extensions is a set of extensions that change a server's responses on a connection (RFC
// 5161): upper-case names in order, separated by one space. It can be a map key.
type Extensions string

// Extensions with a meaning to the gateway.
const (
	Condstore = "CONDSTORE" // RFC 7162
	Qresync   = "QRESYNC"   // RFC 7162; implies CONDSTORE
	UIDOnly   = "UIDONLY"   // RFC 9586
	Rev2      = "IMAP4REV2" // RFC 9051
)

// Has reports whether name is in the set.
func (e Extensions) Has(name string) bool {
	for word := range strings.SplitSeq(string(e), " ") {
		if word == name {
			return true
		}
	}
	return false
}

// With returns the set plus names, in any case, and the extensions that they imply.
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

// Without returns the names that are in e and not in other.
func (e Extensions) Without(other Extensions) []string {
	return slices.DeleteFunc(strings.Fields(string(e)), other.Has)
}
