package audit

// Store is a Redis that has lost route records, or has them again.
type Store struct {
	Node    string // its address; "" where there is only one
	Present int    // of the records that were looked for
	Missing int
	By      string // of a loss that is over: the operator who said that it is meant
}

// RoutesEmptied records that most of the route records that Redis was seen to hold
// are gone: from here on nobody is taken for unknown.
func (l *Log) RoutesEmptied(s *Store) error {
	return l.add(note{kind: routesEmptied, weight: stays}, s.append)
}

// RoutesRestored records that the records are back, or that an operator has said
// that their loss is meant.
func (l *Log) RoutesRestored(s *Store) error {
	return l.add(note{kind: routesRestored, weight: stays}, func(b []byte) []byte {
		return appendText(s.append(b), "by", s.By, maxName)
	})
}

func (s *Store) append(b []byte) []byte {
	b = appendText(b, "subject", s.Node, maxUser)
	b = appendCount(b, "present", uint64(max(s.Present, 0)))
	return appendCount(b, "missing", uint64(max(s.Missing, 0)))
}
