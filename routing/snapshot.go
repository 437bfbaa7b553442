package routing

import (
	"container/list"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"imapgate/internal/event"
	"imapgate/internal/plainfile"
	"imapgate/internal/sleep"
)

const (
	snapshotVersion = 1
	maxSnapshot     = 128 << 20 // bytes of the file; enough for maxUserEntries + maxSharedEntries routes
	saveInterval    = 5 * time.Second
)

// snapshot is the file with the routes for the next process. It has no password hashes: a
// stolen disk must not reveal them.
type snapshot struct {
	Version int          `json:"version"`
	Routes  []savedRoute `json:"routes"` // latest used first; users with records of their own, then others
	// Records are the sampled records, without the key prefix. A file of an earlier version
	// has none; its routes are used instead.
	Records  []string   `json:"records"`
	Accepted acceptance `json:"accepted,omitzero"`
}

// savedRoute is one route of the snapshot.
type savedRoute struct {
	User      string     `json:"user"`
	Backend   string     `json:"backend"`
	Login     string     `json:"login,omitempty"`
	Mode      event.Mode `json:"mode,omitempty"`
	Match     Match      `json:"source"`
	LearnedAt time.Time  `json:"learned"`
}

// loadSnapshot restores the routes of an earlier process. If the file is missing or invalid,
// there are no routes to restore.
func (r *Router) loadSnapshot() {
	if r.cfg.Snapshot == "" {
		return
	}
	s, err := readSnapshot(r.cfg.Snapshot)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		r.log.Error("route snapshot ignored", zap.String("file", r.cfg.Snapshot), zap.Error(err))
		return
	}
	restored := r.cache.restoreRoutes(r.rules, s.Routes)
	r.cache.restoreSample(s)
	r.log.Info("route snapshot loaded", zap.String("file", r.cfg.Snapshot),
		zap.Int("routes", restored), zap.Int("dropped", len(s.Routes)-restored))
}

// CheckSnapshot returns what is wrong with a snapshot file. A missing file is no error. For
// root, any owner is allowed, because the gateway may run as that user.
func CheckSnapshot(path string) error {
	_, err := readSnapshot(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, plainfile.ErrOwner) && os.Geteuid() == 0 {
		return nil
	}
	return err
}

// readSnapshot reads a snapshot file. The file decides where users' mail is, so this process's
// user must own it.
func readSnapshot(path string) (snapshot, error) {
	f, info, err := plainfile.OpenOwned(path)
	if err != nil {
		return snapshot{}, err
	}
	defer f.Close() // read only
	if info.Size() > maxSnapshot {
		return snapshot{}, fmt.Errorf("read route snapshot: larger than %d MiB", maxSnapshot>>20)
	}
	var s snapshot
	if err := json.NewDecoder(io.LimitReader(f, maxSnapshot)).Decode(&s); err != nil {
		return snapshot{}, fmt.Errorf("read route snapshot: %w", err)
	}
	if s.Version != snapshotVersion {
		return snapshot{}, fmt.Errorf("read route snapshot: version %d is not %d", s.Version, snapshotVersion)
	}
	return s, nil
}

// restoreRoutes inserts saved routes as entries to be confirmed when Redis answers. It returns
// how many were valid.
func (c *cache) restoreRoutes(rules rules, routes []savedRoute) int {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	restored := 0
	for i := len(routes) - 1; i >= 0; i-- { // oldest first, so that the newest stay
		e, ok := routes[i].toEntry(c.keys, rules)
		if !ok || c.entries[e.user] != nil {
			continue
		}
		// A time in the future means that a clock was or is wrong. From here on, the monotonic
		// clock measures ages.
		age := max(0, now.Round(0).Sub(routes[i].LearnedAt))
		e.learnedAt = now.Add(-age)
		if age >= c.cfg.Cache.Stale {
			continue
		}
		c.insert(e)
		restored++
	}
	return restored
}

// restoreSample restores the sample of an earlier process.
func (c *cache) restoreSample(s snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.acceptance = s.Accepted
	keys := make([]string, 0, len(s.Records))
	for _, name := range s.Records {
		keys = append(keys, c.keys.prefix+name)
	}
	if s.Records == nil {
		for _, list := range []*list.List{&c.userEntries, &c.sharedEntries} {
			for at := list.Front(); at != nil && len(keys) < maxSample; at = at.Next() {
				keys = append(keys, at.Value.(*entry).decision.key)
			}
		}
	}
	n := c.store.sample.nodeAt("") // in a cluster, reassignNodes distributes them before the first query
	for _, key := range keys[:min(len(keys), maxRestored)] {
		if c.store.sample.nodeByKey[key] == nil && c.keys.isRecord(key, c.cfg.Names) {
			n.keys = append(n.keys, key)
			c.store.sample.nodeByKey[key] = n
		}
	}
}

// toEntry checks a saved route as a record from Redis is checked.
func (s savedRoute) toEntry(k keys, rules rules) (*entry, bool) {
	u, err := rules.names.Canonicalize(s.User)
	if err != nil || u.String() != s.User || !rules.backends[s.Backend] {
		return nil, false
	}
	if s.Login != "" && rules.checkLogin(s.Login) != nil || s.Mode != "" && !event.Known(s.Mode) {
		return nil, false
	}
	d := decision{match: s.Match, record: record{present: true, backend: s.Backend, login: s.Login, mode: s.Mode, state: stateActive}}
	switch s.Match {
	case MatchUser:
		d.key = k.user(u)
	case MatchDomain:
		d.key = k.domain(u.Domain())
	case MatchDefault:
		d.key = k.deflt()
	default:
		return nil, false
	}
	return &entry{user: u, decision: d, fromDisk: true}, true
}

// SaveSnapshots writes the snapshot after changes, and once more when ctx ends. That is before
// a new gateway with the same file takes over.
func (r *Router) SaveSnapshots(ctx context.Context) {
	if r.store == nil || r.cfg.Snapshot == "" {
		return
	}
	interval := saveInterval
	for ctx.Err() == nil {
		_ = sleep.For(ctx, interval)
		began := time.Now()
		if err := r.saveSnapshot(); err != nil {
			r.log.Error("route snapshot not written", zap.Error(err))
		}
		// A large snapshot on a slow disk must not keep the process busy.
		interval = max(saveInterval, 20*time.Since(began))
	}
}

// saveSnapshot writes the file if there are changes.
func (r *Router) saveSnapshot() error {
	s, changed := r.cache.takeSnapshot()
	if !changed {
		return nil
	}
	if err := writeSnapshot(r.cfg.Snapshot, s); err != nil {
		r.cache.markDirty()
		return fmt.Errorf("write route snapshot: %w", err)
	}
	return nil
}

// takeSnapshot returns the content of the file, if it has changed. Users who may not log in
// are left out: after a restart without Redis they get ErrUnavailable.
func (c *cache) takeSnapshot() (s snapshot, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.snapshotDirty {
		return s, false
	}
	c.snapshotDirty = false
	s = snapshot{Version: snapshotVersion, Routes: c.savedRoutes(), Records: make([]string, 0, len(c.store.sample.nodeByKey)), Accepted: c.store.acceptance}
	for _, n := range c.store.sample.nodes {
		for _, key := range n.keys {
			s.Records = append(s.Records, strings.TrimPrefix(key, c.keys.prefix))
		}
	}
	slices.Sort(s.Records)
	return s, true
}

// savedRoutes copies the routes. mu is held.
func (c *cache) savedRoutes() []savedRoute {
	now := time.Now()
	routes := make([]savedRoute, 0, len(c.entries))
	for _, list := range []*list.List{&c.userEntries, &c.sharedEntries} {
		for at := list.Front(); at != nil; at = at.Next() {
			e := at.Value.(*entry)
			if d := e.decision; d.state == stateActive && c.canServe(e, now) {
				routes = append(routes, savedRoute{
					User: e.user.String(), Backend: d.backend, Login: d.login, Mode: d.mode, Match: d.match,
					LearnedAt: now.Add(-now.Sub(e.learnedAt)).UTC().Round(time.Second),
				})
			}
		}
	}
	return routes
}

// markDirty schedules another write, after a failed one.
func (c *cache) markDirty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshotDirty = true
}

// writeSnapshot replaces the file.
func writeSnapshot(path string, s snapshot) error {
	return plainfile.Replace(path, func(f *os.File) error { return json.NewEncoder(f).Encode(s) })
}
