package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"imapgate/internal/identity"
)

// lookup is the method redis: hashes that a PasswordLookup brings.
type lookup struct {
	// Set once.
	find PasswordLookup
	// seen guards itself.
	seen census
}

func newLookup(find PasswordLookup) *lookup {
	return &lookup{find: find, seen: census{most: recentVotes}}
}

// password implements source. A record that cannot be read is a source that
// cannot answer; to treat it as "unknown" would hand the user to the next
// method.
func (l *lookup) password(ctx context.Context, u identity.User) (stored, error) {
	text, err := l.find(ctx, u)
	if errors.Is(err, ErrUnknown) {
		return stored{}, ErrUnknown
	}
	if errors.Is(err, ErrDenied) {
		return stored{}, fmt.Errorf("look up password: %w", err)
	}
	if err != nil {
		return stored{}, fmt.Errorf("look up password: %w: %w", ErrUnavailable, err)
	}
	hash, err := parse(text)
	if err != nil {
		return stored{}, fmt.Errorf("read stored password: %w: %w", ErrUnavailable, err)
	}
	l.seen.count(hash.kind)
	return hash, nil
}

// typical implements source.
func (l *lookup) typical() kind { return l.seen.typical() }

const (
	// maxKinds bounds how many kinds of hash a census tells apart.
	maxKinds = 16
	// recentVotes is where the census of a lookup forgets, so that after a change
	// of scheme the new one leads within as many logins.
	recentVotes = 1 << 12
)

// census counts stored passwords by kind. The zero census is empty.
type census struct {
	// Set once.
	most int // votes at which all are halved; 0: never

	mu sync.Mutex
	// Guarded by mu.
	votes map[kind]int // bound: maxKinds
}

// count adds one.
func (c *census) count(k kind) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.votes == nil {
		c.votes = make(map[kind]int, maxKinds)
	}
	if _, known := c.votes[k]; !known && len(c.votes) >= maxKinds {
		delete(c.votes, slices.MinFunc(slices.Collect(maps.Keys(c.votes)), c.compare))
	}
	c.votes[k]++
	if c.votes[k] == c.most {
		for k := range c.votes {
			c.votes[k] /= 2
		}
	}
}

// typical is the most frequent kind; the zero kind when there is none.
func (c *census) typical() kind {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.votes) == 0 {
		return kind{}
	}
	return slices.MaxFunc(slices.Collect(maps.Keys(c.votes)), c.compare)
}

// compare orders kinds by votes; mu is held. Among equals the name and then the
// costs decide, so that the answer does not follow the order of a map.
func (c *census) compare(a, b kind) int {
	return cmp.Or(
		cmp.Compare(c.votes[a], c.votes[b]),
		strings.Compare(a.scheme.name, b.scheme.name),
		slices.Compare(a.costs[:], b.costs[:]),
	)
}
