package login

import (
	"sync"
	"time"

	"imapgate/internal/identity"
)

// maxBlocks bounds the users that are blocked at a time.
const maxBlocks = 100_000

// Blocks are the users whose logins an operator has blocked for a while. It is safe for
// concurrent use.
type Blocks struct {
	mu    sync.Mutex
	until map[identity.User]time.Time // Guarded by mu. At most maxBlocks.
}

// Add blocks a user until a time. If there is no room it forgets the blocks that are over, and
// then that which ends first.
func (b *Blocks) Add(user identity.User, until time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.until == nil {
		b.until = make(map[identity.User]time.Time)
	}
	if _, known := b.until[user]; !known && len(b.until) >= maxBlocks {
		b.makeRoom(time.Now())
	}
	b.until[user] = until
}

// makeRoom removes blocks; mu is held.
func (b *Blocks) makeRoom(now time.Time) {
	var first identity.User
	for user, until := range b.until {
		if !now.Before(until) {
			delete(b.until, user)
		} else if first.IsZero() || until.Before(b.until[first]) {
			first = user
		}
	}
	if len(b.until) >= maxBlocks {
		delete(b.until, first)
	}
}

// Until returns until when a user is blocked; zero if they are not.
func (b *Blocks) Until(user identity.User) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	until, blocked := b.until[user]
	switch {
	case !blocked:
		return time.Time{}
	case !time.Now().Before(until):
		delete(b.until, user)
		return time.Time{}
	}
	return until
}
