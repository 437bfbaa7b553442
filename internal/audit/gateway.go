package audit

import "time"

// Action is what an operator did. The constants below are all there are;
// another value shows as other.
type Action string

// What an operator does.
const (
	ActReload      Action = "reload" // SIGHUP
	ActDrain       Action = "drain"  // SIGTERM or SIGINT
	ActBan         Action = "ban"
	ActUnban       Action = "unban"
	ActLimitsReset Action = "limits_reset" // a user's failed logins are forgotten
)

// actions is every Action. Constant.
var actions = map[Action]bool{ActReload: true, ActDrain: true, ActBan: true, ActUnban: true, ActLimitsReset: true}

// Known says whether a is one of the constants.
func (a Action) Known() bool { return actions[a] }

// Operator is what somebody in charge told the gateway to do.
type Operator struct {
	Action  Action
	By      string // who, or by what way: a name, an address, "signal"
	Subject string // what it was done to: a user, an address, a network
	Err     error  // why it could not be done
}

// Started records that a gateway began to serve.
func (l *Log) Started(release string) error {
	return l.add(note{kind: started, weight: stays}, func(b []byte) []byte {
		return appendText(b, "version", release, maxName)
	})
}

// Stopped records that a gateway ended in good order, and why.
func (l *Log) Stopped(why Reason) error {
	return l.add(note{kind: stopped, weight: stays}, func(b []byte) []byte {
		return appendReason(b, why)
	})
}

// Reloaded records that the gateway was told to read its files again: what it has
// read, and err for what it has not, or has and does not use.
func (l *Log) Reloaded(reread string, err error) error {
	event := configReloaded
	if err != nil {
		event = configRejected
	}
	result, detail := outcome(err)
	return l.add(note{event, stays, result}, func(b []byte) []byte {
		b = appendText(b, "result", result, maxName)
		b = appendText(b, "reread", reread, maxText)
		return appendText(b, "detail", detail, maxText)
	})
}

// OperatorAction records what an operator did.
func (l *Log) OperatorAction(o *Operator) error {
	result, detail := outcome(o.Err)
	action := string(o.Action)
	if !o.Action.Known() {
		action = other
	}
	return l.add(note{operatorAction, stays, result}, func(b []byte) []byte {
		b = appendText(b, "action", action, maxName)
		b = appendText(b, "by", o.By, maxName)
		b = appendText(b, "subject", o.Subject, maxUser)
		b = appendText(b, "result", result, maxName)
		return appendText(b, "detail", detail, maxText)
	})
}

// outcome is an error as a record has it.
func outcome(err error) (result, detail string) {
	if err == nil {
		return accepted, ""
	}
	return refused, err.Error()
}

// appendMoment appends a time, and nothing for none.
func appendMoment(b []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':', '"')
	b = t.UTC().AppendFormat(b, timeForm)
	return append(b, '"')
}
