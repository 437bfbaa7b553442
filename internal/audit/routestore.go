package audit

// RouteStore is a Redis that has lost route records, or has them again.
type RouteStore struct {
	Node     string // its address; "" where there is only one
	Present  int    // of the records that were looked for
	Missing  int
	Operator string // of a loss that is over: the operator who said that it is meant
}

// RoutesEmptied records that most of the route records that Redis was seen to hold
// are gone: from here on nobody is taken for unknown.
func (l *Log) RoutesEmptied(s *RouteStore) error {
	return l.appendRecord(recordMeta{eventType: routesEmptied, priority: priorityNormal}, s.appendTo)
}

// RoutesRestored records that the records are back, or that an operator has said
// that their loss is meant.
func (l *Log) RoutesRestored(s *RouteStore) error {
	return l.appendRecord(recordMeta{eventType: routesRestored, priority: priorityNormal}, func(b []byte) []byte {
		return appendText(s.appendTo(b), "by", s.Operator, maxNameBytes)
	})
}

func (s *RouteStore) appendTo(b []byte) []byte {
	b = appendText(b, "subject", s.Node, maxUserBytes)
	b = appendCount(b, "present", uint64(max(s.Present, 0)))
	return appendCount(b, "missing", uint64(max(s.Missing, 0)))
}
