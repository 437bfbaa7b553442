package routing

import (
	"context"
	"errors"
	"slices"
	"time"

	"imapgate/internal/identity"

	"go.uber.org/zap"
)

// When the records of a store are looked for.
const (
	holdingInterval = 5 * time.Second        // while all is well
	suspectInterval = 250 * time.Millisecond // until it is known whether they are gone
	emptiedInterval = time.Second            // until they are back
	// lossConfirmDelay is how long most of the records must be missing: Redis may need a
	// moment to name those that were deleted one by one.
	lossConfirmDelay = time.Second
	// recoveryTimeout is for how long no further record comes back before those that
	// are still missing are taken for deleted.
	recoveryTimeout = time.Minute
	// acceptanceTTL is how long the operator's word is good for a loss that a gateway
	// notices after the word.
	acceptanceTTL = 30 * time.Second
)

// errStoreLost is what a missing record comes to while the store has lost most of
// the records that it was seen to have.
var errStoreLost = errors.New("the record is missing, and so are others that Redis held")

// recordReader is how a cache asks Redis.
type recordReader struct {
	// read reads the records of one user, and after them the probes.
	read func(ctx context.Context, u identity.User, probes []string) (userRecords, error)
	// inspect reads which records there are, and the operator's last word.
	inspect func(ctx context.Context, keys []string) (inspection, error)
	// nodeOf is the address of the node that has a key.
	nodeOf func(ctx context.Context, key string) (string, error)
}

// userRecords is what Redis says of one user.
type userRecords struct {
	decision
	present        []string // the records that were there
	absent         []string // those that were not, and would have decided
	missingSamples []string // the probes that were not there
}

// inspection are the records that a node has, of those it was asked for.
type inspection struct {
	present    map[string]bool
	acceptance acceptance
}

// acceptance is an operator's word that missing records are meant to be.
type acceptance struct {
	At int64  `json:"at"` // Unix time in milliseconds, by which one is told from another; 0: none
	By string `json:"by"` // who
}

// StoreStatus says whether Redis has the records it was seen to have.
type StoreStatus struct {
	// State is "holding", "suspect" (most of the records looked for are missing
	// since less than a second) or "emptied"; "" where nothing is known.
	State      string    `json:"state"`
	Since      time.Time `json:"since,omitzero"`
	Node       string    `json:"node,omitempty"` // in a cluster, of several the first by name
	Present    int       `json:"present"`        // of the records that are looked for
	Missing    int       `json:"missing"`
	AcceptedBy string    `json:"by,omitempty"` // whose word ended the last loss; "" where the records came back
}

// States of a Store.
const (
	StoreHolding = "holding"
	StoreSuspect = "suspect"
	StoreEmptied = "emptied"
)

// readPlan is where the records of one user are, and what is read with them.
type readPlan struct {
	keys    []string // the user's own record, the domain's, the default
	nodes   []string // of each
	samples []string
}

// planRead makes the question about u. It holds no lock while nodes are looked up.
func (c *cache) planRead(ctx context.Context, u identity.User) readPlan {
	plan := readPlan{keys: c.keys.candidates(u)}
	plan.nodes = c.nodesOf(ctx, plan.keys)
	if c.hasUnknownNode(plan.nodes) {
		c.reassignNodes(ctx)
		plan.nodes = c.nodesOf(ctx, plan.keys) // the first may have been those of before a failover
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hasLookups = true
	for i, address := range plan.nodes {
		if n := c.sample.nodeAt(address); n.state == nodeHolding && !slices.Contains(plan.nodes[:i], address) {
			if key := n.pickKey(plan.keys); key != "" {
				plan.samples = append(plan.samples, key)
			}
		}
	}
	return plan
}

// nodesOf gives the address of each key's node, "" where it cannot be told: the
// question itself will say so.
func (c *cache) nodesOf(ctx context.Context, keys []string) (nodes []string) {
	for _, key := range keys {
		address, err := c.reader.nodeOf(ctx, key)
		if err != nil {
			address = ""
		}
		nodes = append(nodes, address)
	}
	return nodes
}

// hasUnknownNode says whether one of the nodes was never heard of, as after a failover
// in a cluster.
func (c *cache) hasUnknownNode(nodes []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sample.nodeByKey) > 0 && slices.ContainsFunc(nodes, func(a string) bool { return c.sample.nodes[a] == nil })
}

// reassignNodes finds the nodes of all records that are remembered: in a cluster they
// move. What is known of a node goes with its records.
func (c *cache) reassignNodes(ctx context.Context) {
	c.mu.Lock()
	keys := make([]string, 0, len(c.sample.nodeByKey))
	for key := range c.sample.nodeByKey {
		keys = append(keys, key)
	}
	c.mu.Unlock()
	found := make(map[string]string, len(keys))
	for _, key := range keys {
		address, err := c.reader.nodeOf(ctx, key)
		if err != nil {
			return // they stay where they were
		}
		found[key] = address
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sample.reassign(found)
}

// reassign files records under the nodes that have them now.
func (s *sample) reassign(found map[string]string) {
	for key, address := range found {
		from, to := s.nodeByKey[key], s.nodeAt(address)
		if from == nil || from == to {
			continue
		}
		count := from.invalidated[key]
		s.remove(from, key)
		to.keys, s.nodeByKey[key] = append(to.keys, key), to
		if count != 0 {
			to.invalidated[key] = count
		}
		if from.state > to.state {
			to.state, to.since, to.grewAt = from.state, from.since, from.grewAt
			to.present, to.missing, to.prevPresent = from.present, from.missing, from.prevPresent
		}
	}
	for address, n := range s.nodes {
		if len(n.keys) == 0 {
			delete(s.nodes, address)
		}
	}
}

// claimInspections gives the nodes of a reading that have to be inspected before it can be
// judged, and reserves them for the caller.
func (c *cache) claimInspections(plan readPlan, r userRecords) (nodes []string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range r.missingSamples {
		if n := c.sample.nodeByKey[key]; n != nil && n.invalidated[key] == 0 && n.state == nodeHolding {
			n.markSuspect(now)
			n.inspectedAt = time.Time{}
			c.requestInspection()
		}
	}
	for i, key := range plan.keys {
		n := c.sample.nodes[plan.nodes[i]]
		if n != nil && n.state != nodeHolding && slices.Contains(r.absent, key) && n.claimInspection(now) {
			nodes = append(nodes, plan.nodes[i])
		}
	}
	return nodes
}

// claimInspection says whether it is time to inspect n, and leaves that to the caller.
func (n *node) claimInspection(now time.Time) bool {
	interval := [...]time.Duration{nodeHolding: holdingInterval, nodeSuspect: suspectInterval, nodeEmptied: emptiedInterval}[n.state]
	if len(n.keys) == 0 || now.Sub(n.inspectedAt) < interval && len(n.invalidated) == 0 {
		return false
	}
	n.inspectedAt = now
	return true
}

// inspectNode looks for the records that a node was seen to have. Without an answer
// all stays as it is.
func (c *cache) inspectNode(ctx context.Context, address string) {
	c.mu.Lock()
	n := c.sample.nodes[address]
	var keys []string
	if n != nil {
		keys = slices.Clone(n.keys)
	}
	invalidations := c.sample.invalidations
	c.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	found, err := c.reader.inspect(ctx, keys)
	if err != nil {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	oldState, oldCount := n.state, len(n.keys)
	c.sample.updateNode(n, found.present, invalidations, now)
	c.snapshotDirty = c.snapshotDirty || len(n.keys) != oldCount
	if n.state == nodeHolding && oldState != nodeHolding {
		c.lossAcceptedBy = ""
		c.epoch++ // what was kept against the answers of meanwhile is asked again
	}
	c.applyAcceptance(found.acceptance, now)
	if n.state != oldState {
		c.requestInspection() // to tell it
	}
}

// applyAcceptance takes in the operator's word: of every node in doubt, the records that are
// missing are meant to be. A word that was there before this gateway, with nothing
// in doubt, was about something else. mu is held.
func (c *cache) applyAcceptance(a acceptance, now time.Time) {
	if a.At > c.acceptance.At {
		c.acceptance, c.snapshotDirty = a, true
		if c.acceptanceRead || c.worstState() != nodeHolding {
			c.acceptedAt = now
		}
	}
	c.acceptanceRead = true
	if c.acceptedAt.IsZero() || now.Sub(c.acceptedAt) >= acceptanceTTL {
		return
	}
	for _, n := range c.sample.nodes {
		if n.state == nodeHolding {
			continue
		}
		for _, key := range slices.Clone(n.keys) {
			c.sample.remove(n, key)
		}
		n.state, n.since = nodeHolding, time.Time{}
		c.absenceTrustedAt, c.lossAcceptedBy = now, c.acceptance.By
		c.epoch++
	}
}

// trustsAbsence says whether the absence of records is what somebody meant. mu is held.
func (c *cache) trustsAbsence(plan readPlan, r userRecords) bool {
	for _, key := range r.missingSamples { // it may have been filed under another node meanwhile
		if n := c.sample.nodeByKey[key]; n != nil && n.state != nodeHolding && len(r.absent) > 0 {
			return false
		}
	}
	for i, key := range plan.keys {
		n := c.sample.nodes[plan.nodes[i]]
		if n != nil && n.state != nodeHolding && slices.Contains(r.absent, key) {
			return false
		}
	}
	return true
}

// sampleRecords takes the records of a reading into the sample. mu is held.
func (c *cache) sampleRecords(plan readPlan, r userRecords) {
	for i, key := range plan.keys {
		if slices.Contains(r.present, key) && c.sample.add(plan.nodes[i], key) {
			c.snapshotDirty = true
		}
	}
}

// recordUntrustedAbsence is learn for a record whose absence is not believed.
func (c *cache) recordUntrustedAbsence(q *query, e *entry) (resolution, error) {
	now := time.Now()
	last, ok := c.lastGood(e, now)
	if !ok {
		return resolution{}, unavailable(errStoreLost)
	}
	recheck := suspectInterval
	if c.worstState() == nodeEmptied {
		recheck = c.cfg.Negative
	}
	c.retain(q, e, now.Add(recheck))
	return last, nil
}

// worstState is the worst there is of any node. mu is held.
func (c *cache) worstState() nodeState {
	worst := nodeHolding
	for _, n := range c.sample.nodes {
		worst = max(worst, n.state)
	}
	return worst
}

// storeStatus is what an operator is told.
func (c *cache) storeStatus() StoreStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := StoreStatus{State: StoreHolding, Present: len(c.sample.nodeByKey), AcceptedBy: c.lossAcceptedBy}
	if len(c.sample.nodeByKey) == 0 {
		s.State = ""
	}
	worst, address := (*node)(nil), ""
	for a, n := range c.sample.nodes {
		if worst == nil || n.state > worst.state || n.state == worst.state && a < address {
			worst, address = n, a
		}
	}
	if worst == nil || worst.state == nodeHolding {
		return s
	}
	return StoreStatus{
		State: [...]string{nodeSuspect: StoreSuspect, nodeEmptied: StoreEmptied}[worst.state], Since: worst.since,
		Node: address, Present: worst.present, Missing: worst.missing,
	}
}

// requestInspection has watch look at once.
func (c *cache) requestInspection() {
	select {
	case c.inspectNow <- struct{}{}:
	default:
	}
}

// runInspections looks for the records that Redis was seen to have, so that a loss is
// noticed before somebody asks, and its end, too. It ends with ctx.
func (c *cache) runInspections(ctx context.Context, onChange func(StoreStatus)) {
	raised := false
	for ctx.Err() == nil {
		c.inspectDue(ctx)
		raised = c.reportStore(raised, onChange)
		select {
		case <-time.After(c.inspectionInterval()):
		case <-ctx.Done():
		case <-c.inspectNow:
			select {
			case <-time.After(suspectInterval / 5): // many changes are one round
			case <-ctx.Done():
			}
		}
	}
}

// inspectDue inspects every node that it is time for.
func (c *cache) inspectDue(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	c.mu.Lock()
	idle := !c.hasLookups || len(c.sample.nodeByKey) == 0
	c.mu.Unlock()
	if idle {
		return
	}
	c.reassignNodes(ctx)
	var nodes []string
	now := time.Now()
	c.mu.Lock()
	for address, n := range c.sample.nodes {
		if n.claimInspection(now) {
			nodes = append(nodes, address)
		}
	}
	c.mu.Unlock()
	for _, address := range nodes {
		c.inspectNode(ctx, address)
	}
}

// inspectionInterval is how soon the next round is due.
func (c *cache) inspectionInterval() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return [...]time.Duration{nodeHolding: holdingInterval, nodeSuspect: suspectInterval, nodeEmptied: emptiedInterval}[c.worstState()]
}

// reportStore puts a change of the alarm on record, once, and says whether it is on.
func (c *cache) reportStore(raised bool, onChange func(StoreStatus)) bool {
	s := c.storeStatus()
	lost := s.State == StoreEmptied || raised && s.State == StoreSuspect
	if lost == raised {
		return raised
	}
	if onChange != nil {
		onChange(s)
	}
	details := []zap.Field{zap.String("node", s.Node), zap.Int("present", s.Present), zap.Int("missing", s.Missing), zap.String("by", s.AcceptedBy)}
	if lost {
		c.log.Error("Redis has lost the route records it held; until they are back, or `imapgate route accept-empty` says that "+
			"it is meant, nobody is taken for unknown and the last good answers serve", details...)
	} else {
		c.log.Warn("Redis has the route records it held again, or their loss was accepted", details...)
	}
	return lost
}
