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
	inspectHolding = 5 * time.Second        // while all is well
	inspectSuspect = 250 * time.Millisecond // until it is known whether they are gone
	inspectEmptied = time.Second            // until they are back
	// alarmAfter is how long most of the records must be missing: Redis may need a
	// moment to name those that were deleted one by one.
	alarmAfter = time.Second
	// settleTime is for how long no further record comes back before those that
	// are still missing are taken for deleted.
	settleTime = time.Minute
	// acceptTime is how long the operator's word is good for a loss that a gateway
	// notices after the word.
	acceptTime = 30 * time.Second
)

// errEmptied is what a missing record comes to while the store has lost most of
// the records that it was seen to have.
var errEmptied = errors.New("the record is missing, and so are others that Redis held")

// source is how a cache asks Redis.
type source struct {
	// ask reads the records of one user, and after them the probes.
	ask func(ctx context.Context, u identity.User, probes []string) (reading, error)
	// held reads which records there are, and the operator's last word.
	held func(ctx context.Context, keys []string) (holdings, error)
	// node is the address of the node that has a key.
	node func(ctx context.Context, key string) (string, error)
}

// reading is what Redis says of one user.
type reading struct {
	answer
	held   []string // the records that were there
	absent []string // those that were not, and would have decided
	gone   []string // the probes that were not there
}

// holdings are the records that a node has, of those it was asked for.
type holdings struct {
	there    map[string]bool
	accepted acceptance
}

// acceptance is an operator's word that missing records are meant to be.
type acceptance struct {
	At int64  `json:"at"` // Unix time in milliseconds, by which one is told from another; 0: none
	By string `json:"by"` // who
}

// Store says whether Redis has the records it was seen to have.
type Store struct {
	// State is "holding", "suspect" (most of the records looked for are missing
	// since less than a second) or "emptied"; "" where nothing is known.
	State   string    `json:"state"`
	Since   time.Time `json:"since,omitzero"`
	Node    string    `json:"node,omitempty"` // in a cluster, of several the first by name
	Present int       `json:"present"`        // of the records that are looked for
	Missing int       `json:"missing"`
	By      string    `json:"by,omitempty"` // whose word ended the last loss; "" where the records came back
}

// States of a Store.
const (
	StoreHolding = "holding"
	StoreSuspect = "suspect"
	StoreEmptied = "emptied"
)

// question is where the records of one user are, and what is read with them.
type question struct {
	keys   []string // the user's own record, the domain's, the default
	nodes  []string // of each
	probes []string
}

// prepare makes the question about u. It holds no lock while nodes are looked up.
func (c *cache) prepare(ctx context.Context, u identity.User) question {
	q := question{keys: c.keys.all(u)}
	q.nodes = c.nodesOf(ctx, q.keys)
	if c.unfiled(q.nodes) {
		c.refile(ctx)
		q.nodes = c.nodesOf(ctx, q.keys) // the first may have been those of before a failover
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inUse = true
	for i, address := range q.nodes {
		if n := c.sample.at(address); n.state == holding && !slices.Contains(q.nodes[:i], address) {
			if probe := n.probe(q.keys); probe != "" {
				q.probes = append(q.probes, probe)
			}
		}
	}
	return q
}

// nodesOf gives the address of each key's node, "" where it cannot be told: the
// question itself will say so.
func (c *cache) nodesOf(ctx context.Context, keys []string) (nodes []string) {
	for _, key := range keys {
		address, err := c.source.node(ctx, key)
		if err != nil {
			address = ""
		}
		nodes = append(nodes, address)
	}
	return nodes
}

// unfiled says whether one of the nodes was never heard of, as after a failover
// in a cluster.
func (c *cache) unfiled(nodes []string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sample.where) > 0 && slices.ContainsFunc(nodes, func(a string) bool { return c.sample.nodes[a] == nil })
}

// refile finds the nodes of all records that are remembered: in a cluster they
// move. What is known of a node goes with its records.
func (c *cache) refile(ctx context.Context) {
	c.mu.Lock()
	keys := make([]string, 0, len(c.sample.where))
	for key := range c.sample.where {
		keys = append(keys, key)
	}
	c.mu.Unlock()
	found := make(map[string]string, len(keys))
	for _, key := range keys {
		address, err := c.source.node(ctx, key)
		if err != nil {
			return // they stay where they were
		}
		found[key] = address
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sample.move(found)
}

// move files records under the nodes that have them now.
func (s *sample) move(found map[string]string) {
	for key, address := range found {
		from, to := s.where[key], s.at(address)
		if from == nil || from == to {
			continue
		}
		named := from.named[key]
		s.forget(from, key)
		to.keys, s.where[key] = append(to.keys, key), to
		if named != 0 {
			to.named[key] = named
		}
		if from.state > to.state {
			to.state, to.since, to.grown = from.state, from.since, from.grown
			to.present, to.missing, to.before = from.present, from.missing, from.before
		}
	}
	for address, n := range s.nodes {
		if len(n.keys) == 0 {
			delete(s.nodes, address)
		}
	}
}

// due gives the nodes of a reading that have to be inspected before it can be
// judged, and reserves them for the caller.
func (c *cache) due(q question, r reading) (nodes []string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, key := range r.gone {
		if n := c.sample.where[key]; n != nil && n.named[key] == 0 && n.state == holding {
			n.suspect(now)
			n.inspected = time.Time{}
			c.wake()
		}
	}
	for i, key := range q.keys {
		n := c.sample.nodes[q.nodes[i]]
		if n != nil && n.state != holding && slices.Contains(r.absent, key) && n.reserve(now) {
			nodes = append(nodes, q.nodes[i])
		}
	}
	return nodes
}

// reserve says whether it is time to inspect n, and leaves that to the caller.
func (n *node) reserve(now time.Time) bool {
	every := [...]time.Duration{holding: inspectHolding, suspect: inspectSuspect, emptied: inspectEmptied}[n.state]
	if len(n.keys) == 0 || now.Sub(n.inspected) < every && len(n.named) == 0 {
		return false
	}
	n.inspected = now
	return true
}

// inspect looks for the records that a node was seen to have. Without an answer
// all stays as it is.
func (c *cache) inspect(ctx context.Context, address string) {
	c.mu.Lock()
	n := c.sample.nodes[address]
	var keys []string
	if n != nil {
		keys = slices.Clone(n.keys)
	}
	changes := c.sample.changes
	c.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	h, err := c.source.held(ctx, keys)
	if err != nil {
		return
	}
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	before, was := n.state, len(n.keys)
	c.sample.judge(n, h.there, changes, now)
	c.unsaved = c.unsaved || len(n.keys) != was
	if n.state == holding && before != holding {
		c.ended = ""
		c.doubt++ // what was kept against the answers of meanwhile is asked again
	}
	c.heed(h.accepted, now)
	if n.state != before {
		c.wake() // to tell it
	}
}

// heed takes in the operator's word: of every node in doubt, the records that are
// missing are meant to be. A word that was there before this gateway, with nothing
// in doubt, was about something else. mu is held.
func (c *cache) heed(a acceptance, now time.Time) {
	if a.At > c.accepted.At {
		c.accepted, c.unsaved = a, true
		if c.listened || c.state() != holding {
			c.heard = now
		}
	}
	c.listened = true
	if c.heard.IsZero() || now.Sub(c.heard) >= acceptTime {
		return
	}
	for _, n := range c.sample.nodes {
		if n.state == holding {
			continue
		}
		for _, key := range slices.Clone(n.keys) {
			c.sample.forget(n, key)
		}
		n.state, n.since = holding, time.Time{}
		c.believed, c.ended = now, c.accepted.By
		c.doubt++
	}
}

// believes says whether the absence of records is what somebody meant. mu is held.
func (c *cache) believes(q question, r reading) bool {
	for _, key := range r.gone { // it may have been filed under another node meanwhile
		if n := c.sample.where[key]; n != nil && n.state != holding && len(r.absent) > 0 {
			return false
		}
	}
	for i, key := range q.keys {
		n := c.sample.nodes[q.nodes[i]]
		if n != nil && n.state != holding && slices.Contains(r.absent, key) {
			return false
		}
	}
	return true
}

// remember takes the records of a reading into the sample. mu is held.
func (c *cache) remember(q question, r reading) {
	for i, key := range q.keys {
		if slices.Contains(r.held, key) && c.sample.add(q.nodes[i], key) {
			c.unsaved = true
		}
	}
}

// learnLoss is learn for a record whose absence is not believed.
func (c *cache) learnLoss(f *flight, e *entry) (got, error) {
	now := time.Now()
	last, ok := c.lastGood(e, now)
	if !ok {
		return got{}, unavailable(errEmptied)
	}
	again := inspectSuspect
	if c.state() == emptied {
		again = c.cfg.Negative
	}
	c.hold(f, e, now.Add(again))
	return last, nil
}

// state is the worst there is of any node. mu is held.
func (c *cache) state() storeState {
	worst := holding
	for _, n := range c.sample.nodes {
		worst = max(worst, n.state)
	}
	return worst
}

// store is what an operator is told.
func (c *cache) store() Store {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := Store{State: StoreHolding, Present: len(c.sample.where), By: c.ended}
	if len(c.sample.where) == 0 {
		s.State = ""
	}
	worst, address := (*node)(nil), ""
	for a, n := range c.sample.nodes {
		if worst == nil || n.state > worst.state || n.state == worst.state && a < address {
			worst, address = n, a
		}
	}
	if worst == nil || worst.state == holding {
		return s
	}
	return Store{
		State: [...]string{suspect: StoreSuspect, emptied: StoreEmptied}[worst.state], Since: worst.since,
		Node: address, Present: worst.present, Missing: worst.missing,
	}
}

// wake has watch look at once.
func (c *cache) wake() {
	select {
	case c.alerted <- struct{}{}:
	default:
	}
}

// watch looks for the records that Redis was seen to have, so that a loss is
// noticed before somebody asks, and its end, too. It ends with ctx.
func (c *cache) watch(ctx context.Context, told func(Store)) {
	said := false
	for ctx.Err() == nil {
		c.round(ctx)
		said = c.tell(said, told)
		select {
		case <-time.After(c.pace()):
		case <-ctx.Done():
		case <-c.alerted:
			select {
			case <-time.After(inspectSuspect / 5): // many changes are one round
			case <-ctx.Done():
			}
		}
	}
}

// round inspects every node that it is time for.
func (c *cache) round(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	c.mu.Lock()
	idle := !c.inUse || len(c.sample.where) == 0
	c.mu.Unlock()
	if idle {
		return
	}
	c.refile(ctx)
	var nodes []string
	now := time.Now()
	c.mu.Lock()
	for address, n := range c.sample.nodes {
		if n.reserve(now) {
			nodes = append(nodes, address)
		}
	}
	c.mu.Unlock()
	for _, address := range nodes {
		c.inspect(ctx, address)
	}
}

// pace is how soon the next round is due.
func (c *cache) pace() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return [...]time.Duration{holding: inspectHolding, suspect: inspectSuspect, emptied: inspectEmptied}[c.state()]
}

// tell puts a change of the alarm on record, once, and says whether it is on.
func (c *cache) tell(said bool, told func(Store)) bool {
	s := c.store()
	on := s.State == StoreEmptied || said && s.State == StoreSuspect
	if on == said {
		return said
	}
	if told != nil {
		told(s)
	}
	about := []zap.Field{zap.String("node", s.Node), zap.Int("present", s.Present), zap.Int("missing", s.Missing), zap.String("by", s.By)}
	if on {
		c.log.Error("Redis has lost the route records it held; until they are back, or `imapgate route accept-empty` says that "+
			"it is meant, nobody is taken for unknown and the last good answers serve", about...)
	} else {
		c.log.Warn("Redis has the route records it held again, or their loss was accepted", about...)
	}
	return on
}
