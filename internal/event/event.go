package event

import (
	"slices"
	"strings"
)

//go:generate go test -run TestTablesAreGenerated -update .

// Word is one value of a closed set.
type Word struct {
	Value   string
	Tags    string // separated by spaces
	Meaning string
}

// Words returns the words of the set that has the type named set, in the order of
// the documents; with tags only those that have all of them.
func Words(set string, tags ...string) []Word {
	return slices.DeleteFunc(slices.Clone(sets[set]), func(w Word) bool {
		return slices.ContainsFunc(tags, func(tag string) bool { return !w.Has(tag) })
	})
}

// Values returns the values of Words.
func Values(set string, tags ...string) []string {
	var values []string
	for _, w := range Words(set, tags...) {
		values = append(values, w.Value)
	}
	return values
}

// Has reports whether the word has a tag.
func (w Word) Has(tag string) bool { return slices.Contains(strings.Fields(w.Tags), tag) }
