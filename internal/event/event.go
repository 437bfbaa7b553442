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

// index holds the words of each set by their value. Constant.
var index = indexSets()

func indexSets() map[string]map[string]Word {
	byValue := make(map[string]map[string]Word, len(sets))
	for set, words := range sets {
		byValue[set] = make(map[string]Word, len(words))
		for _, w := range words {
			byValue[set][w.Value] = w
		}
	}
	return byValue
}

func isKnown(set, value string) bool { _, ok := index[set][value]; return ok }

// hasTag reports whether a word of a set has a tag.
func hasTag(set, value, tag string) bool { return index[set][value].Has(tag) }

// Priority decides which records are dropped first when a buffer fills up.
type Priority uint8

// The priorities, as in the tags of Event.
const (
	PriorityLow Priority = iota
	PriorityNormal
	PriorityRequired
)

// priorities holds the priority of each event. Constant.
var priorities = indexPriorities()

func indexPriorities() map[Event]Priority {
	byTag := map[string]Priority{"low": PriorityLow, "normal": PriorityNormal, "required": PriorityRequired}
	of := make(map[Event]Priority)
	for _, w := range sets["Event"] {
		of[Event(w.Value)] = byTag[w.Tags]
	}
	return of
}

// Priority is the priority of the event's records.
func (v Event) Priority() Priority { return priorities[v] }

// LoginResult is the result of a login that is refused for r.
func (r Reason) LoginResult() Result {
	if hasTag("Reason", string(r), "unavailable") {
		return ResultUnavailable
	}
	return ResultRefused
}

// OrOther returns v, or Other if it is not in its set.
func OrOther[T interface {
	~string
	Known() bool
}](v T) string {
	if v.Known() {
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
