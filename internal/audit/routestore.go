package audit

import "imapgate/internal/event"

// RouteStore is a Redis that has lost route records, or has them again.
type RouteStore struct {
	Node     string // address of the node; "" if there is only one
	Present  int    // number of checked records that are present
	Missing  int
	Operator string // the operator who confirmed the loss
}

// RoutesEmptied records that most of the known route records are missing from Redis.
// From then on no user is treated as unknown.
func (l *Log) RoutesEmptied(s *RouteStore) error {
	return l.appendRecord(recordMeta{event: event.RoutesEmptied}, s.appendTo)
}

// RoutesRestored records that the records are back, or that an operator confirmed
// their loss.
func (l *Log) RoutesRestored(s *RouteStore) error {
	return l.appendRecord(recordMeta{event: event.RoutesRestored}, func(b []byte) []byte {
		return appendText(s.appendTo(b), "by", s.Operator, maxNameBytes)
	})
}

func (r *RouteStore) appendTo(b []byte) []byte {
	b = appendText(b, "subject", r.Node, maxUserBytes)
	b = appendCount(b, "present", uint64(max(r.Present, 0)))
	return appendCount(b, "missing", uint64(max(r.Missing, 0)))
}
