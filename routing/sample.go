package routing

import (
	"slices"
	"time"
)

const (
	// maxSample bounds the records that are remembered of one node.
	maxSample = 64
	// maxRestored bounds the records that a snapshot may bring, of all nodes.
	maxRestored = 1024
)

// storeState is what a node's records say about the node.
type storeState int

const (
	holding storeState = iota // it has the records it had
	suspect                   // most of them were missing once
	emptied                   // most of them are missing for alarmAfter
)

// sample is the names of some records that Redis was seen to have. A store that
// was flushed, lost its volume or is another one has none of them; one from which
// an operator deletes a record has all the others.
//
// The cache's lock guards it.
type sample struct {
	nodes map[string]*node // by address; a store without a cluster is one node, ""
	where map[string]*node // by the record's key

	changes uint64 // how many were named
}

// node is one Redis node and the records it was seen to have.
type node struct {
	keys  []string          // at most maxSample, but for what a snapshot brings
	named map[string]uint64 // of keys, those Redis named since they were last asked for and there: which change it was, from 1
	next  int               // in keys: whose turn it is

	state     storeState
	since     time.Time // of a state that is not holding
	inspected time.Time // when its keys were last asked for
	present   int       // of keys, at the last inspection
	missing   int
	before    int       // present at the inspection before, while emptied
	grown     time.Time // when present last grew, while emptied
}

func newSample() sample {
	return sample{nodes: make(map[string]*node), where: make(map[string]*node)}
}

// at finds or makes the node with an address.
func (s *sample) at(address string) *node {
	n := s.nodes[address]
	if n == nil {
		n = &node{named: make(map[string]uint64)}
		s.nodes[address] = n
	}
	return n
}

// add remembers that a node has a record, and says whether there are more for it;
// in a full sample it takes the place of another. A node in doubt gets none: what
// is written after a loss does not undo it.
func (s *sample) add(address, key string) bool {
	if s.where[key] != nil {
		return false
	}
	n := s.at(address)
	if n.state != holding {
		return false
	}
	more := len(n.keys) < maxSample
	if !more {
		n.next = (n.next + 1) % len(n.keys)
		s.forget(n, n.keys[n.next])
	}
	n.keys, s.where[key] = append(n.keys, key), n
	return more
}

// forget lets go of a record.
func (s *sample) forget(n *node, key string) {
	if i := slices.Index(n.keys, key); i >= 0 {
		n.keys = slices.Delete(n.keys, i, i+1)
	}
	delete(n.named, key)
	delete(s.where, key)
}

// changed notes that Redis has named a record: it may be gone, and that is meant.
// It says whether somebody should look.
func (s *sample) changed(key string) bool {
	n := s.where[key]
	if n != nil {
		s.changes++
		n.named[key] = s.changes
	}
	return n != nil
}

// unname is for changes that may have been missed, or a flush: what was named
// before it may have been lost since.
func (s *sample) unname() {
	for _, n := range s.nodes {
		clear(n.named)
	}
}

// probe is a record that the node has if it has not lost them all, "" when none is
// known; another one each time, and one of own only where there is no other.
func (n *node) probe(own []string) string {
	spare := ""
	for range n.keys {
		n.next = (n.next + 1) % len(n.keys)
		switch key := n.keys[n.next]; {
		case n.named[key] != 0:
		case slices.Contains(own, key):
			spare = key
		default:
			return key
		}
	}
	return spare
}

// suspect puts a node in doubt.
func (n *node) suspect(now time.Time) {
	if n.state == holding {
		n.state, n.since = suspect, now
	}
}

// judge takes in which of a node's records were there when as many changes had been
// named, and moves its state. A record that has been named since may be gone by now.
func (s *sample) judge(n *node, there map[string]bool, changes uint64, now time.Time) {
	var missing []string
	n.present = 0
	for _, key := range slices.Clone(n.keys) {
		has, asked := there[key]
		switch {
		case !asked:
		case has:
			n.present++
			if n.named[key] <= changes {
				delete(n.named, key)
			}
		case n.named[key] != 0:
			s.forget(n, key)
		default:
			missing = append(missing, key)
		}
	}
	n.missing = len(missing)
	if !n.lost(now) {
		for _, key := range missing {
			s.forget(n, key)
		}
		n.state, n.since = holding, time.Time{}
	}
}

// lost moves the state of a node by what is present and missing, and says whether
// its records are to be taken for lost. A loss is most of the sample. It is over
// when all are back, or half of them and no more came for settleTime.
func (n *node) lost(now time.Time) bool {
	most := n.missing > n.present
	switch n.state {
	case holding:
		if most {
			n.suspect(now)
		}
		return most
	case suspect:
		if most && now.Sub(n.since) >= alarmAfter {
			n.state, n.grown, n.before = emptied, now, n.present
		}
		return most
	}
	if n.present > n.before {
		n.grown = now
	}
	n.before = n.present
	return n.missing > 0 && (most || now.Sub(n.grown) < settleTime)
}
