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

// nodeState is what a node's records say about the node.
type nodeState int

const (
	nodeHolding nodeState = iota // it has the records it had
	nodeSuspect                  // most of them were missing once
	nodeEmptied                  // most of them are missing for lossConfirmDelay
)

// sample is the names of some records that Redis was seen to have. A store that
// was flushed, lost its volume or is another one has none of them; one from which
// an operator deletes a record has all the others.
//
// The cache's lock guards it.
type sample struct {
	nodes     map[string]*node // by address; a store without a cluster is one node, ""
	nodeByKey map[string]*node // by the record's key

	invalidations uint64 // how many were named
}

// node is one Redis node and the records it was seen to have.
type node struct {
	keys        []string          // at most maxSample, but for what a snapshot brings
	invalidated map[string]uint64 // of keys, those Redis named since they were last asked for and there: which change it was, from 1
	cursor      int               // in keys: whose turn it is

	state       nodeState
	since       time.Time // of a state that is not holding
	inspectedAt time.Time // when its keys were last asked for
	present     int       // of keys, at the last inspection
	missing     int
	prevPresent int       // present at the inspection before, while emptied
	grewAt      time.Time // when present last grew, while emptied
}

func newSample() sample {
	return sample{nodes: make(map[string]*node), nodeByKey: make(map[string]*node)}
}

// nodeAt finds or makes the node with an address.
func (s *sample) nodeAt(address string) *node {
	n := s.nodes[address]
	if n == nil {
		n = &node{invalidated: make(map[string]uint64)}
		s.nodes[address] = n
	}
	return n
}

// add remembers that a node has a record, and says whether there are more for it;
// in a full sample it takes the place of another. A node in doubt gets none: what
// is written after a loss does not undo it.
func (s *sample) add(address, key string) bool {
	if s.nodeByKey[key] != nil {
		return false
	}
	n := s.nodeAt(address)
	if n.state != nodeHolding {
		return false
	}
	grew := len(n.keys) < maxSample
	if !grew {
		n.cursor = (n.cursor + 1) % len(n.keys)
		s.remove(n, n.keys[n.cursor])
	}
	n.keys, s.nodeByKey[key] = append(n.keys, key), n
	return grew
}

// remove lets go of a record.
func (s *sample) remove(n *node, key string) {
	if i := slices.Index(n.keys, key); i >= 0 {
		n.keys = slices.Delete(n.keys, i, i+1)
	}
	delete(n.invalidated, key)
	delete(s.nodeByKey, key)
}

// markInvalidated notes that Redis has named a record: it may be gone, and that is meant.
// It says whether somebody should look.
func (s *sample) markInvalidated(key string) bool {
	n := s.nodeByKey[key]
	if n != nil {
		s.invalidations++
		n.invalidated[key] = s.invalidations
	}
	return n != nil
}

// clearInvalidated is for changes that may have been missed, or a flush: what was named
// before it may have been lost since.
func (s *sample) clearInvalidated() {
	for _, n := range s.nodes {
		clear(n.invalidated)
	}
}

// pickKey is a record that the node has if it has not lost them all, "" when none is
// known; another one each time, and one of own only where there is no other.
func (n *node) pickKey(own []string) string {
	spare := ""
	for range n.keys {
		n.cursor = (n.cursor + 1) % len(n.keys)
		switch key := n.keys[n.cursor]; {
		case n.invalidated[key] != 0:
		case slices.Contains(own, key):
			spare = key
		default:
			return key
		}
	}
	return spare
}

// markSuspect puts a node in doubt.
func (n *node) markSuspect(now time.Time) {
	if n.state == nodeHolding {
		n.state, n.since = nodeSuspect, now
	}
}

// updateNode takes in which of a node's records were there when as many changes had been
// named, and moves its state. A record that has been named since may be gone by now.
func (s *sample) updateNode(n *node, present map[string]bool, invalidations uint64, now time.Time) {
	var missing []string
	n.present = 0
	for _, key := range slices.Clone(n.keys) {
		exists, inspected := present[key]
		switch {
		case !inspected:
		case exists:
			n.present++
			if n.invalidated[key] <= invalidations {
				delete(n.invalidated, key)
			}
		case n.invalidated[key] != 0:
			s.remove(n, key)
		default:
			missing = append(missing, key)
		}
	}
	n.missing = len(missing)
	if !n.advanceState(now) {
		for _, key := range missing {
			s.remove(n, key)
		}
		n.state, n.since = nodeHolding, time.Time{}
	}
}

// advanceState moves the state of a node by what is present and missing, and says whether
// its records are to be taken for lost. A loss is most of the sample. It is over
// when all are back, or half of them and no more came for recoveryTimeout.
func (n *node) advanceState(now time.Time) bool {
	mostMissing := n.missing > n.present
	switch n.state {
	case nodeHolding:
		if mostMissing {
			n.markSuspect(now)
		}
		return mostMissing
	case nodeSuspect:
		if mostMissing && now.Sub(n.since) >= lossConfirmDelay {
			n.state, n.grewAt, n.prevPresent = nodeEmptied, now, n.present
		}
		return mostMissing
	}
	if n.present > n.prevPresent {
		n.grewAt = now
	}
	n.prevPresent = n.present
	return n.missing > 0 && (mostMissing || now.Sub(n.grewAt) < recoveryTimeout)
}
