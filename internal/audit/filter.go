package audit

import (
	"fmt"
	"slices"

	"imapgate/internal/event"
)

// schemaVersion is the field v of every record. It grows when a reader of the old
// form would misunderstand the new one; new events and fields do not change it.
const schemaVersion = 1

// recordMeta is what the log needs of a record besides its text.
type recordMeta struct {
	event  event.Event
	result string // "" if the event has none
}

// filter selects the records of one sink.
type filter struct {
	events  map[event.Event]bool // nil: all
	results map[string]bool      // nil: all
}

func newFilter(events, allowedResults []string) (filter, error) {
	var f filter
	for _, name := range events {
		e := event.Event(name)
		if !event.Known(e) {
			return f, fmt.Errorf("unknown event %q", name)
		}
		if f.events == nil {
			f.events = make(map[event.Event]bool)
		}
		f.events[e] = true
	}
	for _, r := range allowedResults {
		if !slices.Contains(event.Values("Result", "record"), r) {
			return f, fmt.Errorf("unknown result %q", r)
		}
		if f.results == nil {
			f.results = make(map[string]bool)
		}
		f.results[r] = true
	}
	return f, nil
}

// matches reports whether a record passes the filter. Records without a result are
// not filtered by result.
func (f *filter) matches(m recordMeta) bool {
	return (f.events == nil || f.events[m.event]) && (f.results == nil || m.result == "" || f.results[m.result])
}
