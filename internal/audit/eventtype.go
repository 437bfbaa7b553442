package audit

import (
	"fmt"
	"slices"
)

// schemaVersion is the field v of every record. It grows when a reader of the old
// form would misunderstand the new one; new events and fields do not change it.
const schemaVersion = 1

// eventType is a type of event. The constants below are all types.
type eventType uint8

const (
	started eventType = iota
	stopped
	configReloaded
	configRejected
	operatorAction
	loginAccepted
	loginRefused
	sessionEnded
	connectionRefused
	limitHit
	banAdded
	banRemoved
	spraySuspected
	routesEmptied
	routesRestored
	sessionAttached
	upstreamLost
	sessionPinned
	command
	recordsLost
	logOpened
	eventTypes // number of types
)

// eventNames has the value of the field event for each type. Constant.
var eventNames = [eventTypes]string{
	started: "started", stopped: "stopped", configReloaded: "config_reloaded",
	configRejected: "config_rejected", operatorAction: "operator_action",
	loginAccepted: "login_accepted", loginRefused: "login_refused", sessionEnded: "session_ended",
	connectionRefused: "connection_refused", limitHit: "limit_hit", banAdded: "ban_added", banRemoved: "ban_removed",
	spraySuspected: "spray_suspected", routesEmptied: "routes_emptied", routesRestored: "routes_restored", sessionAttached: "session_attached", upstreamLost: "upstream_lost",
	sessionPinned: "session_pinned", command: "command", recordsLost: "records_lost", logOpened: "log_opened",
}

// Events returns the names of all events, in the order of the types.
func Events() []string { return slices.Clone(eventNames[:]) }

// Results returns all values of the field result, sorted.
func Results() []string {
	list := []string{accepted, refused, unavailable, delayed, slowed, string(CommandNo), string(CommandBad), string(CommandCut)}
	for r := range results {
		if !slices.Contains(list, string(r)) {
			list = append(list, string(r))
		}
	}
	slices.Sort(list)
	return list
}

// Values of the field result, besides those of reattaches and commands.
const (
	accepted    = "accepted"
	refused     = "refused"     // another password may help; or a limit refused something
	unavailable = "unavailable" // a later attempt may help
	delayed     = "delayed"     // a limit delayed something
	slowed      = "slowed"      // a limit throttles bytes or commands
)

// priority decides which records are dropped first when a buffer fills up.
type priority uint8

const (
	priorityLow      priority = iota // neither a login nor an end: a burst of these must not prevent logins
	priorityNormal                   // kept while the buffer has space
	priorityRequired                 // the action is not allowed without its record
)

// recordMeta is what the log needs of a record besides its text.
type recordMeta struct {
	eventType eventType
	priority  priority
	result    string // "" if the event has none
}

// filter selects the records of one sink.
type filter struct {
	eventTypes [eventTypes]bool
	results    map[string]bool // nil: all
}

func newFilter(events, allowedResults []string) (filter, error) {
	var f filter
	for _, name := range events {
		t := slices.Index(eventNames[:], name)
		if t < 0 {
			return f, fmt.Errorf("unknown event %q", name)
		}
		f.eventTypes[t] = true
	}
	if len(events) == 0 {
		for t := range f.eventTypes {
			f.eventTypes[t] = true
		}
	}
	for _, r := range allowedResults {
		if !slices.Contains(Results(), r) {
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
	return f.eventTypes[m.eventType] && (f.results == nil || m.result == "" || f.results[m.result])
}
