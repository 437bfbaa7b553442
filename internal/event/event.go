package event

import (
	_ "embed"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// Word is one value of a closed set.
type Word struct {
	Value   string
	Tags    string // separated by spaces
	Meaning string
}

// source has the rows: the constants of all sets, with their comments.
//
//go:embed words.go
var source string

// row matches a constant's type, value, tags and meaning. Constant.
var row = regexp.MustCompile(`(?m)^\t\w+ +(\w+) += "(\w+)" +// ?(?:((?:\b(?:` + tags + `) ?)+): ?)?(.*)$`)

// tags are the words that may come before the meaning.
const tags = `low|normal|required|refused|unavailable|session|bye|login|record|reattach|handshake|check|reload|lookup|refusal|throttle`

// sets holds the words of each set by the name of its type; index, also by their value.
// Constant.
var sets, index = readSets()

func readSets() (map[string][]Word, map[string]map[string]Word) {
	lists, byValue := make(map[string][]Word), make(map[string]map[string]Word)
	for _, fields := range row.FindAllStringSubmatch(source, -1) {
		set, word := fields[1], Word{fields[2], fields[3], fields[4]}
		if byValue[set] == nil {
			byValue[set] = make(map[string]Word)
		}
		lists[set] = append(lists[set], word)
		byValue[set][word.Value] = word
	}
	return lists, byValue
}

// Known reports whether v is one of the constants of its type.
func Known[T ~string](v T) bool {
	_, ok := index[reflect.TypeFor[T]().Name()][string(v)]
	return ok
}

// Priority decides which records are dropped first when a buffer fills up.
type Priority uint8

// The priorities, as in the tags of Event.
const (
	PriorityLow Priority = iota
	PriorityNormal
	PriorityRequired
)

// priorities holds the priorities by their tags. Constant.
var priorities = map[string]Priority{"low": PriorityLow, "normal": PriorityNormal, "required": PriorityRequired}

// Priority is the priority of the event's records.
func (v Event) Priority() Priority { return priorities[index["Event"][string(v)].Tags] }

// LoginResult is the result of a login that is refused for r.
func (r Reason) LoginResult() Result {
	if index["Reason"][string(r)].Has("unavailable") {
		return ResultUnavailable
	}
	return ResultRefused
}

// OrOther returns v, or Other if it is not in its set.
func OrOther[T ~string](v T) string {
	if Known(v) {
		return string(v)
	}
	return Other
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
