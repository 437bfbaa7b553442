package audit

import (
	"fmt"
	"slices"
)

// version is the field v of every record. It grows when a reader of the old
// form would misunderstand the new one; new events and fields do not count.
const version = 1

// kind is an event. The constants below are all there are.
type kind uint8

const (
	started kind = iota
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
	kinds // how many there are
)

// names is the value of the field event. Constant.
var names = [kinds]string{
	started: "started", stopped: "stopped", configReloaded: "config_reloaded",
	configRejected: "config_rejected", operatorAction: "operator_action",
	loginAccepted: "login_accepted", loginRefused: "login_refused", sessionEnded: "session_ended",
	connectionRefused: "connection_refused", limitHit: "limit_hit", banAdded: "ban_added", banRemoved: "ban_removed",
	spraySuspected: "spray_suspected", routesEmptied: "routes_emptied", routesRestored: "routes_restored", sessionAttached: "session_attached", upstreamLost: "upstream_lost",
	sessionPinned: "session_pinned", command: "command", recordsLost: "records_lost", logOpened: "log_opened",
}

// Events lists the name of every event.
func Events() []string { return slices.Clone(names[:]) }

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

// weight says which records give way when there is little room.
type weight uint8

const (
	yields  weight = iota // neither lets anybody in nor ends: a burst of these must not keep others out
	stays                 // kept while there is any room
	permits               // without it nothing is permitted, so nothing is recorded either
)

// note is what the log must know of a record, besides its text.
type note struct {
	kind   kind
	weight weight
	result string // "" when the event has none
}

// filter is the records one sink wants.
type filter struct {
	kinds   [kinds]bool
	results map[string]bool // nil: all
}

func newFilter(events, only []string) (filter, error) {
	var f filter
	for _, name := range events {
		k := slices.Index(names[:], name)
		if k < 0 {
			return f, fmt.Errorf("there is no event %q", name)
		}
		f.kinds[k] = true
	}
	if len(events) == 0 {
		for k := range f.kinds {
			f.kinds[k] = true
		}
	}
	for _, r := range only {
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

// wants says whether a record passes. One that has no result has none to be
// left out for.
func (f *filter) wants(n note) bool {
	return f.kinds[n.kind] && (f.results == nil || n.result == "" || f.results[n.result])
}
