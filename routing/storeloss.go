package routing

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/identity"
	"imapgate/internal/sleep"
)

// Intervals and timeouts of inspections.
const (
	holdingInterval = 5 * time.Second        // in nodeHolding
	suspectInterval = 250 * time.Millisecond // in nodeSuspect
	emptiedInterval = time.Second            // in nodeEmptied
	// lossConfirmDelay is how long most of the records must be missing. Redis may send the
	// invalidations of single deletions a moment later.
	lossConfirmDelay = time.Second
	// recoveryTimeout is how long no further record may come back before the missing ones
	// count as deleted.
	recoveryTimeout = time.Minute
	// acceptanceTTL is how long an acceptance applies to losses that a gateway detects after
	// it.
	acceptanceTTL = 30 * time.Second
)

// inspectionIntervals are the intervals by the state of a node. Constant.
var inspectionIntervals = [...]time.Duration{nodeHolding: holdingInterval, nodeSuspect: suspectInterval, nodeEmptied: emptiedInterval}

// errStoreLost is returned for a missing record while the store has lost most of the sampled
// records.
var errStoreLost = errors.New("the record is missing, and so are most others that Redis held")

// recordReader is how a cache reads Redis.
type recordReader struct {
	// read reads the records of one user, and the samples after them.
	read func(ctx context.Context, u identity.User, samples []string) (userRecords, error)
	// inspect reports which records exist, and the operator's latest acceptance.
	inspect func(ctx context.Context, keys []string) (inspection, error)
	// nodeOf returns the address of the node that has a key.
	nodeOf func(ctx context.Context, key string) (string, error)
}

// userRecords is the result of reading one user's records.
type userRecords struct {
	decision
	present        []string // keys of records that exist
	absent         []string // keys of records that are missing and would have decided
	missingSamples []string // keys of samples that are missing
}

// inspection is the result of reading the sampled records of a node.
type inspection struct {
	present    map[string]bool
	acceptance acceptance
}

// acceptance is an operator's confirmation that the missing records were removed on purpose.
type acceptance struct {
	At int64  `json:"at"` // Unix time in milliseconds, which identifies it; 0: none
	By string `json:"by"` // operator
}

// storeState is what a cache knows of the records in Redis.
type storeState struct {
	sample           sample
	hasLookups       bool       // there was a lookup
	acceptance       acceptance // the operator's latest
	acceptedAt       time.Time  // when it was received; zero: before this process
	acceptanceRead   bool       // it was read at least once
	absenceTrustedAt time.Time  // decisions learned before may be replaced by absence
	lossAcceptedBy   string     // operator who accepted the last loss
}

// StoreStatus is whether Redis has the records it was seen to have.
type StoreStatus struct {
	// State is "holding", "suspect" (most of the sampled records have been missing for less
	// than a second) or "emptied"; "" if no records are known.
	State      string    `json:"state"`
	Since      time.Time `json:"since,omitzero"`
	Node       string    `json:"node,omitempty"` // in a cluster, the first by name
	Present    int       `json:"present"`        // sampled records that exist
	Missing    int       `json:"missing"`
	AcceptedBy string    `json:"by,omitempty"` // operator who accepted the last loss; "" if the records came back
}

// States of StoreStatus.
const (
	StoreHolding = "holding"
	StoreSuspect = "suspect"
	StoreEmptied = "emptied"
)

// readPlan is what a query for one user reads, and from which nodes.
type readPlan struct {
	keys    []string // the user's own record, the domain's, the default
	nodes   []string // node of each key
	samples []string
}

// planRead plans the query for u. It holds no lock while it looks up nodes.
func (c *cache) planRead(ctx context.Context, u identity.User) readPlan {
	plan := readPlan{keys: c.keys.candidates(u)}
	plan.nodes = c.nodesOf(ctx, plan.keys)
	if c.hasUnknownNode(plan.nodes) {
		c.reassignNodes(ctx)
		plan.nodes = c.nodesOf(ctx, plan.keys) // the first result may predate a failover
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.hasLookups = true
	for i, address := range plan.nodes {
		if n := c.store.sample.nodeAt(address); n.state == nodeHolding && !slices.Contains(plan.nodes[:i], address) {
			if key := n.pickKey(plan.keys); key != "" {
				plan.samples = append(plan.samples, key)
			}
		}
	}
	return plan
}

// nodesOf returns the address of each key's node, "" if it is unknown; the query itself then
// returns the error.
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

// hasUnknownNode reports whether a node is not in the sample, as after a failover in a
// cluster.
func (c *cache) hasUnknownNode(nodes []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.store.sample.nodeByKey) > 0 && slices.ContainsFunc(nodes, func(a string) bool { return c.store.sample.nodes[a] == nil })
}

// reassignNodes looks up the nodes of all sampled records, which move in a cluster. The state
// of a node moves with its records.
func (c *cache) reassignNodes(ctx context.Context) {
	c.mu.Lock()
	keys := make([]string, 0, len(c.store.sample.nodeByKey))
	for key := range c.store.sample.nodeByKey {
		keys = append(keys, key)
	}
	c.mu.Unlock()
	found := make(map[string]string, len(keys))
	for _, key := range keys {
		address, err := c.reader.nodeOf(ctx, key)
		if err != nil {
			return // all records keep their nodes
		}
		found[key] = address
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.sample.reassign(found)
}

// reassign moves records to the nodes that have them now.
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

// claimInspections returns the nodes to inspect before r can be trusted, and claims these
// inspections for the caller.
func (c *cache) claimInspections(plan readPlan, r userRecords) (nodes []string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range r.missingSamples {
		if n := c.store.sample.nodeByKey[key]; n != nil && n.invalidated[key] == 0 && n.state == nodeHolding {
			n.markSuspect(now)
			n.inspectedAt = time.Time{}
			c.requestInspection()
		}
	}
	for _, address := range c.nodesInLoss(plan, r) {
		if c.store.sample.nodes[address].claimInspection(now) {
			nodes = append(nodes, address)
		}
	}
	return nodes
}

// nodesInLoss returns the nodes that may have lost a record of the plan that is missing. mu is
// held.
func (c *cache) nodesInLoss(plan readPlan, r userRecords) (nodes []string) {
	for i, key := range plan.keys {
		n := c.store.sample.nodes[plan.nodes[i]]
		if n != nil && n.state != nodeHolding && slices.Contains(r.absent, key) {
			nodes = append(nodes, plan.nodes[i])
		}
	}
	return nodes
}

// claimInspection reports whether an inspection of n is due. If so, the caller must inspect
// it.
func (n *node) claimInspection(now time.Time) bool {
	if len(n.keys) == 0 || now.Sub(n.inspectedAt) < inspectionIntervals[n.state] && len(n.invalidated) == 0 {
		return false
	}
	n.inspectedAt = now
	return true
}

// inspectNode reads the sampled records of a node and updates its state. Without a reply
// nothing changes.
func (c *cache) inspectNode(ctx context.Context, address string) {
	c.mu.Lock()
	n := c.store.sample.nodes[address]
	var keys []string
	if n != nil {
		keys = slices.Clone(n.keys)
	}
	invalidations := c.store.sample.invalidations
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
	c.store.sample.updateNode(n, found.present, invalidations, now)
	c.snapshotDirty = c.snapshotDirty || len(n.keys) != oldCount
	if n.state == nodeHolding && oldState != nodeHolding {
		c.store.lossAcceptedBy = ""
		c.epoch++ // entries retained during the loss are queried again
	}
	c.applyAcceptance(found.acceptance, now)
	if n.state != oldState {
		c.requestInspection() // to report the state
	}
}

// applyAcceptance applies an operator's acceptance: all missing records of nodes in loss were
// removed on purpose. An acceptance from before this process, without a loss, was about
// something else. mu is held.
func (c *cache) applyAcceptance(a acceptance, now time.Time) {
	if a.At > c.store.acceptance.At {
		c.store.acceptance, c.snapshotDirty = a, true
		if c.store.acceptanceRead || c.worstState() != nodeHolding {
			c.store.acceptedAt = now
		}
	}
	c.store.acceptanceRead = true
	if c.store.acceptedAt.IsZero() || now.Sub(c.store.acceptedAt) >= acceptanceTTL {
		return
	}
	for _, n := range c.store.sample.nodes {
		if n.state == nodeHolding {
			continue
		}
		for _, key := range slices.Clone(n.keys) {
			c.store.sample.remove(n, key)
		}
		n.state, n.since = nodeHolding, time.Time{}
		c.store.absenceTrustedAt, c.store.lossAcceptedBy = now, c.store.acceptance.By
		c.epoch++
	}
}

// trustsAbsence reports whether missing records can be trusted to be removed on purpose. mu is
// held.
func (c *cache) trustsAbsence(plan readPlan, r userRecords) bool {
	for _, key := range r.missingSamples { // its node may have changed since the plan
		if n := c.store.sample.nodeByKey[key]; n != nil && n.state != nodeHolding && len(r.absent) > 0 {
			return false
		}
	}
	return len(c.nodesInLoss(plan, r)) == 0
}

// sampleRecords adds the records that exist to the sample. mu is held.
func (c *cache) sampleRecords(plan readPlan, r userRecords) {
	for i, key := range plan.keys {
		if slices.Contains(r.present, key) && c.store.sample.add(plan.nodes[i], key) {
			c.snapshotDirty = true
		}
	}
}

// recordUntrustedAbsence is recordReply for a record whose absence is not trusted. mu is held.
func (c *cache) recordUntrustedAbsence(q *query, e *entry) (resolution, error) {
	now := time.Now()
	last, ok := c.lastGood(e, now)
	if !ok {
		return resolution{}, unavailable(errStoreLost)
	}
	recheck := suspectInterval
	if c.worstState() == nodeEmptied {
		recheck = c.cfg.Cache.Negative
	}
	c.retain(q, e, now.Add(recheck))
	return last, nil
}

// worstNode returns the node in the worst state, the first by name, and its address; nil if
// none is known. mu is held.
func (c *cache) worstNode() (worst *node, address string) {
	for a, n := range c.store.sample.nodes {
		if worst == nil || n.state > worst.state || n.state == worst.state && a < address {
			worst, address = n, a
		}
	}
	return worst, address
}

// worstState returns the worst state of all nodes. mu is held.
func (c *cache) worstState() nodeState {
	if n, _ := c.worstNode(); n != nil {
		return n.state
	}
	return nodeHolding
}

// storeStatus returns the status for operators.
func (c *cache) storeStatus() StoreStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	worst, address := c.worstNode()
	switch {
	case len(c.store.sample.nodeByKey) == 0 && c.worstState() == nodeHolding:
		return StoreStatus{AcceptedBy: c.store.lossAcceptedBy}
	case worst.state == nodeHolding:
		return StoreStatus{State: StoreHolding, Present: len(c.store.sample.nodeByKey), AcceptedBy: c.store.lossAcceptedBy}
	}
	return StoreStatus{
		State: [...]string{nodeSuspect: StoreSuspect, nodeEmptied: StoreEmptied}[worst.state], Since: worst.since,
		Node: address, Present: worst.present, Missing: worst.missing,
	}
}

// requestInspection wakes runInspections.
func (c *cache) requestInspection() {
	select {
	case c.inspectNow <- struct{}{}:
	default:
	}
}

// runInspections inspects the nodes at their intervals, so that a loss and its end are noticed
// without a lookup. It ends with ctx.
func (c *cache) runInspections(ctx context.Context, onChange func(StoreStatus)) {
	raised := false
	for ctx.Err() == nil {
		c.inspectDue(ctx)
		raised = c.reportStore(raised, onChange)
		select {
		case <-time.After(c.inspectionInterval()):
		case <-ctx.Done():
		case <-c.inspectNow:
			_ = sleep.For(ctx, suspectInterval/5) // combine many changes in one inspection
		}
	}
}

// inspectDue inspects every node that is due.
func (c *cache) inspectDue(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	c.mu.Lock()
	idle := !c.store.hasLookups || len(c.store.sample.nodeByKey) == 0
	c.mu.Unlock()
	if idle {
		return
	}
	c.reassignNodes(ctx)
	var nodes []string
	now := time.Now()
	c.mu.Lock()
	for address, n := range c.store.sample.nodes {
		if n.claimInspection(now) {
			nodes = append(nodes, address)
		}
	}
	c.mu.Unlock()
	for _, address := range nodes {
		c.inspectNode(ctx, address)
	}
}

// inspectionInterval returns the time until the next inspection.
func (c *cache) inspectionInterval() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return inspectionIntervals[c.worstState()]
}

// reportStore logs and reports a loss of the records, and its end, once. It reports whether
// there is a loss.
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
		c.log.Error("Redis has lost the route records it held; until they are back, or `imapgate route accept-empty` "+
			"accepts the loss, no user is treated as unknown and the last good routes stay in use", details...)
	} else {
		c.log.Warn("the lost route records are back in Redis, or their loss was accepted", details...)
	}
	return lost
}
