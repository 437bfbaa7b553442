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

// OperatorAction is what somebody in charge told the gateway to do.
type OperatorAction struct {
	Action   Action
	Operator string // who, or by what way: a name, an address, "signal"
	Subject  string // what it was done to: a user, an address, a network
	Err      error  // why it could not be done
}

// GatewayStarted records that a gateway began to serve.
func (l *Log) GatewayStarted(version string) error {
	return l.appendRecord(recordMeta{eventType: started, priority: priorityNormal}, func(b []byte) []byte {
		return appendText(b, "version", version, maxNameBytes)
	})
}

// GatewayStopped records that a gateway ended in good order, and why.
func (l *Log) GatewayStopped(reason Reason) error {
	return l.appendRecord(recordMeta{eventType: stopped, priority: priorityNormal}, func(b []byte) []byte {
		return appendReason(b, reason)
	})
}

// ConfigReloaded records that the gateway was told to read its files again: what it has
// read, and err for what it has not, or has and does not use.
func (l *Log) ConfigReloaded(reread string, err error) error {
	t := configReloaded
	if err != nil {
		t = configRejected
	}
	result, detail := resultOf(err)
	return l.appendRecord(recordMeta{t, priorityNormal, result}, func(b []byte) []byte {
		b = appendText(b, "result", result, maxNameBytes)
		b = appendText(b, "reread", reread, maxTextBytes)
		return appendText(b, "detail", detail, maxTextBytes)
	})
}

// OperatorAction records what an operator did.
func (l *Log) OperatorAction(a *OperatorAction) error {
	result, detail := resultOf(a.Err)
	action := string(a.Action)
	if !a.Action.Known() {
		action = other
	}
	return l.appendRecord(recordMeta{operatorAction, priorityNormal, result}, func(b []byte) []byte {
		b = appendText(b, "action", action, maxNameBytes)
		b = appendText(b, "by", a.Operator, maxNameBytes)
		b = appendText(b, "subject", a.Subject, maxUserBytes)
		b = appendText(b, "result", result, maxNameBytes)
		return appendText(b, "detail", detail, maxTextBytes)
	})
}

// resultOf is an error as a record has it.
func resultOf(err error) (result, detail string) {
	if err == nil {
		return accepted, ""
	}
	return refused, err.Error()
}

// appendTime appends a time, and nothing for none.
func appendTime(b []byte, key string, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':', '"')
	b = t.UTC().AppendFormat(b, timeLayout)
	return append(b, '"')
}
