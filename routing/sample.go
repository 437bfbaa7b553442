package routing

import (
	"slices"
	"time"
)

const (
	// maxSample bounds the records in the sample of one node.
	maxSample = 64
	// maxRestored bounds the records restored from a snapshot, for all nodes together.
	maxRestored = 1024
)

// nodeState is whether a node has the records it was seen to have.
type nodeState int

const (
	nodeHolding nodeState = iota // the records are there
	nodeSuspect                  // most of them were missing in one read
	nodeEmptied                  // most of them have been missing for lossConfirmDelay
)

// sample holds the names of some records that Redis was seen to have. After a flush, or with
// another or lost volume, all of them are missing; after an operator deletes a record, all
// others are there.
//
// The cache's lock guards it.
type sample struct {
	nodes     map[string]*node // by address; without a cluster there is one node, ""
	nodeByKey map[string]*node // by record key

	invalidations uint64 // invalidations of sampled records so far
}

// node is one Redis node and the records it was seen to have.
type node struct {
	keys        []string          // at most maxSample, except after a restore
	invalidated map[string]uint64 // number of the invalidation, from 1, of keys that were not seen since
	cursor      int               // index in keys of the last one used

	state       nodeState
	since       time.Time // start of a state other than nodeHolding
	inspectedAt time.Time // start of the last inspection
	present     int       // count of keys at the last inspection
	missing     int
	prevPresent int       // present at the previous inspection, while emptied
	grewAt      time.Time // when present last grew, while emptied
}

func newSample() sample {
	return sample{nodes: make(map[string]*node), nodeByKey: make(map[string]*node)}
}

// nodeAt returns the node with an address, and creates it if needed.
func (s *sample) nodeAt(address string) *node {
	n := s.nodes[address]
	if n == nil {
		n = &node{invalidated: make(map[string]uint64)}
		s.nodes[address] = n
	}
	return n
}

// add adds a record to the sample of a node and reports whether the sample grew; a full sample
// replaces another record. A node in another state than nodeHolding is left unchanged: records
// written after a loss do not undo it.
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

// remove removes a record from the sample.
func (s *sample) remove(n *node, key string) {
	if i := slices.Index(n.keys, key); i >= 0 {
		n.keys = slices.Delete(n.keys, i, i+1)
	}
	delete(n.invalidated, key)
	delete(s.nodeByKey, key)
}

// markInvalidated records an invalidation of key: the record may have been deleted on purpose.
// It reports whether key is in the sample, so that its node needs an inspection.
func (s *sample) markInvalidated(key string) bool {
	n := s.nodeByKey[key]
	if n != nil {
		s.invalidations++
		n.invalidated[key] = s.invalidations
	}
	return n != nil
}

// clearInvalidated forgets the invalidations, after a flush or when changes may have been
// missed: the records may have been lost since.
func (s *sample) clearInvalidated() {
	for _, n := range s.nodes {
		clear(n.invalidated)
	}
}

// pickKey returns the next record that the node should have, "" if none is known. Keys of own
// are used only if there is no other.
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

// markSuspect sets nodeSuspect on a node in nodeHolding.
func (n *node) markSuspect(now time.Time) {
	if n.state == nodeHolding {
		n.state, n.since = nodeSuspect, now
	}
}

// updateNode applies an inspection to a node and advances its state. invalidations is the
// number of invalidations when the inspection began; a record invalidated later may be missing
// by now.
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

// advanceState moves the state of a node by the present and missing counts. It reports whether
// the missing records count as lost. A loss is when most of the sample is missing. It ends
// when all are back, or when half are back and no more came for recoveryTimeout.
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
