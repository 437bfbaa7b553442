package routing

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"imapgate/internal/identity"
)

// scanBatch is about how many keys one SCAN looks at.
const scanBatch = 200

// Record is a route record in Redis, whatever is in it.
type Record struct {
	Target Target
	Fields map[string]string // a password hash is replaced
}

// Kind returns user, domain or default.
func (t Target) Kind() string {
	switch {
	case !t.user.IsZero():
		return "user"
	case t.domain != "":
		return "domain"
	}
	return "default"
}

// ListQuery selects records.
type ListQuery struct {
	Kind    string // user, domain or default; "" for all
	Backend string // "" for any
	Name    string // in which * is for any characters; "" for any
}

// listCursor is where a list goes on.
type listCursor struct {
	Phase int    `json:"p,omitempty"` // index of listPhases
	Node  int    `json:"n,omitempty"` // index of the server, of a Redis Cluster
	Scan  uint64 `json:"s,omitempty"` // cursor of SCAN
	Skip  int    `json:"k,omitempty"` // keys of that SCAN that were returned
}

// listPhases are the kinds of records in the order of a list. Constant.
var listPhases = []string{"default", "domain", "user"}

// errCursor is an operator's mistake.
var errCursor = fmt.Errorf("%w: the cursor is not one of a list of routes", ErrInvalidRecord)

// List returns up to limit records, and the cursor of the next ones; "" after the last. A
// record that is written meanwhile may be missing, or there twice, as with SCAN.
func (r *Router) List(ctx context.Context, q ListQuery, cursor string, limit int) (records []Record, next string, err error) {
	if r.store == nil {
		return nil, "", errNoRedis
	}
	var c listCursor
	if cursor != "" && json.Unmarshal([]byte(cursor), &c) != nil {
		return nil, "", errCursor
	}
	nodes, err := r.store.nodes(ctx)
	if err != nil {
		return nil, "", err
	}
	if c.Phase < 0 || c.Phase >= len(listPhases) || c.Node < 0 || c.Node >= len(nodes) || c.Skip < 0 {
		return nil, "", errCursor
	}
	for len(records) < limit {
		kind, node := listPhases[c.Phase], nodes[c.Node]
		var found []Record
		var keysRead int
		var after uint64
		if q.Kind == "" || q.Kind == kind {
			if found, keysRead, after, err = r.scan(ctx, node, kind, &q, c, limit-len(records)); err != nil {
				return nil, "", err
			}
			records = append(records, found...)
		}
		switch {
		case keysRead > 0:
			c.Skip += keysRead // there is more in this SCAN
		case after > 0:
			c.Scan, c.Skip = after, 0
		case c.Node+1 < len(nodes) && kind != "default":
			c = listCursor{Phase: c.Phase, Node: c.Node + 1}
		case c.Phase+1 < len(listPhases):
			c = listCursor{Phase: c.Phase + 1}
		default:
			return records, "", nil
		}
	}
	text, _ := json.Marshal(c) // numbers
	return records, string(text), nil
}

// scan reads the records of one SCAN from the cursor on, at most limit. keysRead is how many of
// its keys were read if some are left; otherwise it is 0, and after is the next cursor.
func (r *Router) scan(ctx context.Context, node redis.Cmdable, kind string, q *ListQuery, c listCursor, limit int) (records []Record, keysRead int, after uint64, err error) {
	keys := []string{r.keys.deflt()}
	if kind != "default" {
		if keys, after, err = node.Scan(ctx, c.Scan, r.keys.pattern(kind, q.Name), scanBatch).Result(); err != nil {
			return nil, 0, 0, readError(kind+" records", err)
		}
	} else if q.Name != "" {
		keys = nil
	}
	keys = keys[min(c.Skip, len(keys)):]
	for i, key := range keys {
		if len(records) == limit {
			return records, i, after, nil
		}
		target, ok := r.targetOf(kind, key)
		if !ok {
			continue // no gateway would read it
		}
		fields, err := r.Record(ctx, target)
		if err != nil {
			return nil, 0, 0, err
		}
		if fields != nil && (q.Backend == "" || fields[fieldBackend] == q.Backend) {
			records = append(records, Record{target, fields})
		}
	}
	return records, 0, after, nil
}

// pattern returns the SCAN pattern of the keys of a kind of records.
func (k keys) pattern(kind, name string) string {
	if name == "" {
		name = "*"
	}
	escape := strings.NewReplacer(`\`, `\\`, "?", `\?`, "[", `\[`, "]", `\]`)
	prefix := strings.NewReplacer("*", `\*`).Replace(escape.Replace(k.prefix))
	return prefix + kind + ":" + escape.Replace(strings.ToLower(name))
}

// targetOf returns the target of a key; ok is false if its name is not canonical.
func (r *Router) targetOf(kind, key string) (t Target, ok bool) {
	if kind == "default" {
		return ForDefault(), true
	}
	name := strings.TrimPrefix(key, r.keys.prefix+kind+":")
	if kind == "domain" {
		domain, err := r.cfg.Names.CanonicalizeDomain(name)
		return ForDomain(domain), err == nil && domain == name
	}
	u, err := r.cfg.Names.Canonicalize(name)
	return ForUser(u), err == nil && u.String() == name
}

// nodes returns the servers that hold records, in an order that stays.
func (s *store) nodes(ctx context.Context) ([]redis.Cmdable, error) {
	cluster, ok := s.rdb.(*redis.ClusterClient)
	if !ok {
		return []redis.Cmdable{s.rdb}, nil
	}
	var mu sync.Mutex
	byAddress := make(map[string]redis.Cmdable)
	err := cluster.ForEachMaster(ctx, func(_ context.Context, node *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		byAddress[node.Options().Addr] = node
		return nil
	})
	if err != nil {
		return nil, readError("the servers of the cluster", err)
	}
	var nodes []redis.Cmdable
	for _, a := range slices.Sorted(maps.Keys(byAddress)) {
		nodes = append(nodes, byAddress[a])
	}
	return nodes, nil
}

// ImportResult is what has become of a record.
type ImportResult string

// Results of an import.
const (
	ImportCreated   ImportResult = "created"
	ImportChanged   ImportResult = "changed"
	ImportUnchanged ImportResult = "unchanged"
)

// Import writes fields of a record, or with dryRun only reports what would become of it. The
// error is that of SetRecord.
func (r *Router) Import(ctx context.Context, t Target, fields map[string]string, dryRun bool) (ImportResult, error) {
	if r.store == nil {
		return "", errNoRedis
	}
	key := r.keys.key(t)
	now, err := r.store.rdb.HGetAll(ctx, key).Result()
	if err != nil {
		return "", readError(key, err)
	}
	result := ImportUnchanged
	for name, value := range fields {
		if now[name] != value {
			result = ImportChanged
		}
	}
	if len(now) == 0 {
		result = ImportCreated
	}
	if result == ImportUnchanged {
		return result, nil
	}
	if _, err := r.rules.planEdit(t, now, fields); err != nil {
		return "", fmt.Errorf("%w: %s: %w", ErrInvalidRecord, key, err)
	}
	if dryRun {
		return result, nil
	}
	return result, r.SetRecord(ctx, t, fields)
}

// TargetOf returns the target of a kind and a name as an operator has written it.
func TargetOf(names identity.Names, kind, name string) (Target, error) {
	switch kind {
	case "user":
		u, err := names.Canonicalize(name)
		if err != nil {
			return Target{}, fmt.Errorf("%w: user %s: %w", ErrInvalidRecord, strconv.Quote(name), err)
		}
		return ForUser(u), nil
	case "domain":
		domain, err := names.CanonicalizeDomain(name)
		if err != nil {
			return Target{}, fmt.Errorf("%w: domain %s: %w", ErrInvalidRecord, strconv.Quote(name), err)
		}
		return ForDomain(domain), nil
	case "default":
		return ForDefault(), nil
	}
	return Target{}, fmt.Errorf("%w: kind is not user, domain or default", ErrInvalidRecord)
}
