package audit

import (
	"time"

	"imapgate/internal/event"
)

// OperatorAction is a command of an operator to the gateway.
type OperatorAction struct {
	Action   event.Action
	Operator string // a name, an address, or "signal"
	Subject  string // a user, an address, or a network
	Err      error  // why it was refused
}

// GatewayStarted records that a gateway began to serve.
func (l *Log) GatewayStarted(version string) error {
	return l.appendRecord(recordMeta{event: event.Started}, func(b []byte) []byte {
		return appendText(b, "version", version, maxNameBytes)
	})
}

// GatewayStopped records that a gateway shut down cleanly, and why.
func (l *Log) GatewayStopped(reason event.Reason) error {
	return l.appendRecord(recordMeta{event: event.Stopped}, func(b []byte) []byte {
		return appendReason(b, reason)
	})
}

// ConfigReloaded records a reload: reread names the reloaded files, and err reports
// those that were not read, or were read but are not used.
func (l *Log) ConfigReloaded(reread string, err error) error {
	e := event.ConfigReloaded
	if err != nil {
		e = event.ConfigRejected
	}
	result, detail := resultOf(err)
	return l.appendRecord(recordMeta{e, result}, func(b []byte) []byte {
		b = appendText(b, "result", result, maxNameBytes)
		b = appendText(b, "reread", reread, maxTextBytes)
		return appendText(b, "detail", detail, maxTextBytes)
	})
}

// OperatorAction records a command of an operator.
func (l *Log) OperatorAction(a *OperatorAction) error {
	result, detail := resultOf(a.Err)
	action := event.OrOther(a.Action)
	return l.appendRecord(recordMeta{event.OperatorAction, result}, func(b []byte) []byte {
		b = appendText(b, "action", action, maxNameBytes)
		b = appendText(b, "by", a.Operator, maxNameBytes)
		b = appendText(b, "subject", a.Subject, maxUserBytes)
		b = appendText(b, "result", result, maxNameBytes)
		return appendText(b, "detail", detail, maxTextBytes)
	})
}

// resultOf returns the fields result and detail for an error.
func resultOf(err error) (result, detail string) {
	if err == nil {
		return string(event.ResultAccepted), ""
	}
	return string(event.ResultRefused), err.Error()
}

// appendTime appends a time, or nothing for the zero time.
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
