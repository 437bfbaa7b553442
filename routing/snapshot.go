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
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imapgate/internal/plainfile"

	"go.uber.org/zap"
)

const (
	snapshotVersion = 1
	maxSnapshot     = 128 << 20 // bytes of the file; maxUserEntries + maxSharedEntries routes fit
	saveInterval    = 5 * time.Second
)

// snapshot is the file with the routes for the next process. It has no password
// hashes: whoever reads a disk must not get them.
type snapshot struct {
	Version int          `json:"version"`
	Routes  []savedRoute `json:"routes"` // the latest used first, of users with own records and of others
	// Records are some that Redis was seen to have, without the prefix of keys. An
	// earlier version has none, and its routes stand for them.
	Records  []string   `json:"records"`
	Accepted acceptance `json:"accepted,omitzero"`
}

// savedRoute is one route of the snapshot.
type savedRoute struct {
	User      string    `json:"user"`
	Backend   string    `json:"backend"`
	Login     string    `json:"login,omitempty"`
	Mode      string    `json:"mode,omitempty"`
	Match     Match     `json:"source"`
	LearnedAt time.Time `json:"learned"`
}

// loadSnapshot takes in what an earlier process knew. A file that is missing or
// bad costs its routes and nothing else.
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
	restored := r.cache.restoreRoutes(r.keys, r.rules, s.Routes)
	r.cache.restoreSample(s)
	r.log.Info("route snapshot loaded", zap.String("file", r.cfg.Snapshot),
		zap.Int("routes", restored), zap.Int("dropped", len(s.Routes)-restored))
}

// CheckSnapshot says what is wrong with a snapshot file; one that is missing is
// none yet. To root it may be anybody's: the gateway may run as whoever owns it.
func CheckSnapshot(path string) error {
	_, err := readSnapshot(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, plainfile.ErrOwner) && os.Geteuid() == 0 {
		return nil
	}
	return err
}

// readSnapshot reads a file that decides where users' mail is: it must be this
// program's own.
func readSnapshot(path string) (snapshot, error) {
	f, info, err := plainfile.OpenOwned(path)
	if err != nil {
		return snapshot{}, err
	}
	defer f.Close() // it was only read
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

// restoreRoutes puts saved routes into the cache, to be asked again when Redis answers,
// and says how many were still good.
func (c *cache) restoreRoutes(k keys, rules rules, routes []savedRoute) int {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	restored := 0
	for i := len(routes) - 1; i >= 0; i-- { // oldest first, so that the newest stay
		e, ok := routes[i].toEntry(k, rules)
		if !ok || c.entries[e.user] != nil {
			continue
		}
		// A time in the future is a clock that was wrong, then or now. Ages are
		// measured by the monotonic clock from here on.
		age := max(0, now.Round(0).Sub(routes[i].LearnedAt))
		e.learnedAt = now.Add(-age)
		if age >= c.cfg.Stale {
			continue
		}
		c.insert(e)
		restored++
	}
	return restored
}

// restoreSample takes in which records an earlier process has seen.
func (c *cache) restoreSample(s snapshot) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acceptance = s.Accepted
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
	n := c.sample.nodeAt("") // in a cluster they are filed before the first question
	for _, key := range keys[:min(len(keys), maxRestored)] {
		if c.sample.nodeByKey[key] == nil && c.keys.isRecord(key, c.cfg.Names) {
			n.keys = append(n.keys, key)
			c.sample.nodeByKey[key] = n
		}
	}
}

// toEntry checks a saved route as it would be checked had Redis said it.
func (s savedRoute) toEntry(k keys, rules rules) (*entry, bool) {
	u, err := rules.names.Canonicalize(s.User)
	if err != nil || u.String() != s.User || !rules.backends[s.Backend] {
		return nil, false
	}
	if s.Login != "" && rules.checkLogin(s.Login) != nil || s.Mode != "" && !isKnownMode(s.Mode) {
		return nil, false
	}
	a := decision{match: s.Match, backend: s.Backend, login: s.Login, mode: s.Mode, state: stateActive}
	switch s.Match {
	case MatchUser:
		a.key, a.hasRecord = k.user(u), true
	case MatchDomain:
		a.key = k.domain(u.Domain())
	case MatchDefault:
		a.key = k.deflt()
	default:
		return nil, false
	}
	return &entry{user: u, decision: a, fromDisk: true}, true
}

// SaveSnapshots writes the snapshot when something changed, and once more when ctx
// ends, which is before another gateway that uses the same file takes our place.
func (r *Router) SaveSnapshots(ctx context.Context) {
	if r.store == nil || r.cfg.Snapshot == "" {
		return
	}
	interval := saveInterval
	for ctx.Err() == nil {
		select {
		case <-time.After(interval):
		case <-ctx.Done():
		}
		began := time.Now()
		if err := r.saveSnapshot(); err != nil {
			r.log.Error("route snapshot not written", zap.Error(err))
		}
		// A large snapshot on a slow disk must not be all this process does.
		interval = max(saveInterval, 20*time.Since(began))
	}
}

// saveSnapshot writes the file if something changed since it last did.
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

// takeSnapshot copies what the file should have, if that has changed. Users who may
// not log in are left out: after a restart without Redis they get ErrUnavailable.
func (c *cache) takeSnapshot() (s snapshot, changed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.snapshotDirty {
		return s, false
	}
	c.snapshotDirty = false
	s = snapshot{Version: snapshotVersion, Routes: c.savedRoutes(), Records: make([]string, 0, len(c.sample.nodeByKey)), Accepted: c.acceptance}
	for _, n := range c.sample.nodes {
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
			if a := e.decision; a.state == stateActive && c.canServe(e, now) {
				routes = append(routes, savedRoute{
					User: e.user.String(), Backend: a.backend, Login: a.login, Mode: a.mode, Match: a.match,
					LearnedAt: now.Add(-now.Sub(e.learnedAt)).UTC().Round(time.Second),
				})
			}
		}
	}
	return routes
}

// markDirty is for a snapshot that could not be written.
func (c *cache) markDirty() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snapshotDirty = true
}

// writeSnapshot replaces the file in one step, so that a crash leaves the old one
// or the new one.
func writeSnapshot(path string, s snapshot) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".routes-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is gone when all went well
	if err := errors.Join(json.NewEncoder(f).Encode(s), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
