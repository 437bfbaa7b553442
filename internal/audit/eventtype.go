package audit

import (
	"fmt"
	"slices"
)

// schemaVersion is the field v of every record. It grows when a reader of the old
// form would misunderstand the new one; new events and fields do not count.
const schemaVersion = 1

// eventType is an event. The constants below are all there are.
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
	eventTypes // how many there are
)

// eventNames is the value of the field event. Constant.
var eventNames = [eventTypes]string{
	started: "started", stopped: "stopped", configReloaded: "config_reloaded",
	configRejected: "config_rejected", operatorAction: "operator_action",
	loginAccepted: "login_accepted", loginRefused: "login_refused", sessionEnded: "session_ended",
	connectionRefused: "connection_refused", limitHit: "limit_hit", banAdded: "ban_added", banRemoved: "ban_removed",
	spraySuspected: "spray_suspected", routesEmptied: "routes_emptied", routesRestored: "routes_restored", sessionAttached: "session_attached", upstreamLost: "upstream_lost",
	sessionPinned: "session_pinned", command: "command", recordsLost: "records_lost", logOpened: "log_opened",
}

// Events lists the name of every event.
func Events() []string { return slices.Clone(eventNames[:]) }

// Results lists every value of the field result.
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

// Values of the field result, besides those of an attach and of a command.
const (
	accepted    = "accepted"
	refused     = "refused"     // try another password; or a limit that turned something away
	unavailable = "unavailable" // try again later
	delayed     = "delayed"     // a limit that made somebody wait
	slowed      = "slowed"      // a limit that holds bytes or commands back
)

// priority says which records give way when there is little room.
type priority uint8

const (
	priorityLow      priority = iota // neither lets anybody in nor ends: a burst of these must not keep others out
	priorityNormal                   // kept while there is any room
	priorityRequired                 // without it nothing is permitted, so nothing is recorded either
)

// recordMeta is what the log must know of a record, besides its text.
type recordMeta struct {
	eventType eventType
	priority  priority
	result    string // "" when the event has none
}

// filter is the records one sink wants.
type filter struct {
	eventTypes [eventTypes]bool
	results    map[string]bool // nil: all
}

func newFilter(events, allowedResults []string) (filter, error) {
	var f filter
	for _, name := range events {
		t := slices.Index(eventNames[:], name)
		if t < 0 {
			return f, fmt.Errorf("there is no event %q", name)
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
			return f, fmt.Errorf("there is no result %q", r)
		}
		if f.results == nil {
			f.results = make(map[string]bool)
		}
		f.results[r] = true
	}
	return f, nil
}

// matches says whether a record passes. One that has no result has none to be
// left out for.
func (f *filter) matches(m recordMeta) bool {
	return f.eventTypes[m.eventType] && (f.results == nil || m.result == "" || f.results[m.result])
}
