package limit

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"

	"imapgate/internal/identity"
)

const (
	// burst is how many seconds' worth may be used at once. What is used beyond it
	// is waited for.
	burst = 2
	// maxUploaders bounds the users whose uploads of the day are known here. Of one
	// who falls out Redis knows, if there is one.
	maxUploaders = 32 << 10
	// uploadKept is how long Redis keeps a day's sum.
	uploadKept = 48 * time.Hour
)

// Quota is what one user may still use. All of the user's sessions here share
// it; its methods may be called by any goroutine.
type Quota struct {
	// Set once.
	gate              *Limiter
	user              identity.User
	upload            int64         // Budgets.Upload
	commands, in, out *rate.Limiter // nil: no bound

	sessions int // Guarded by the mu of budgets.
}

// Command counts a command, and says how long it has to wait.
func (b *Quota) Command() time.Duration { return spend(b.commands, 1) }

// Read counts n bytes from a client, and says how long to leave the next ones
// unread.
func (b *Quota) Read(n int) time.Duration { return spend(b.in, n) }

// Written counts n bytes to a client, and says how long the next ones have to
// wait.
func (b *Quota) Written(n int) time.Duration { return spend(b.out, n) }

// spend takes n tokens, also those that are yet to come, and says when they will
// all have.
func spend(l *rate.Limiter, n int) (wait time.Duration) {
	if l == nil {
		return 0
	}
	now := time.Now()
	for most := l.Burst(); n > 0; n -= most {
		wait = l.ReserveN(now, min(n, most)).DelayFrom(now)
	}
	return wait
}

// Upload counts a message of n bytes, and says whether the day has room for it. It
// asks Redis once, for no longer than ioTime.
func (b *Quota) Upload(ctx context.Context, n int64) bool {
	g, most := b.gate, b.upload
	if !g.uploads {
		return true
	}
	if most == 0 { // here; at another listener it counts
		most = math.MaxInt64
	}
	today := time.Now().UTC().Format(time.DateOnly)
	if !g.budgets.upload(b.user, today, n, most) {
		return false
	}
	if g.shared == nil {
		return true
	}
	r, err := g.shared.ask(ctx, call{
		g.shared.scripts.upload, []string{g.shared.keys.uploads(b.user, today)}, []any{n, most, uploadKept.Milliseconds()},
	})
	if err != nil {
		return true // what is known here has decided
	}
	reply, err := r[0].Int64Slice()
	if err != nil || len(reply) != 2 {
		return true
	}
	fits := reply[0] == 1
	if !fits {
		g.budgets.upload(b.user, today, -n, most) // it was counted here
	}
	g.budgets.uploaded(b.user, today, reply[1])
	return fits
}

// ForceUpload counts bytes of messages that are on their way already.
func (b *Quota) ForceUpload(n int64) {
	if !b.gate.uploads {
		return
	}
	today := time.Now().UTC().Format(time.DateOnly)
	b.gate.budgets.overdraw(b.user, today, n)
	if s := b.gate.shared; s != nil {
		// What Redis is not told of, this gateway still knows.
		_, _ = s.ask(context.Background(), call{
			s.scripts.upload, []string{s.keys.uploads(b.user, today)}, []any{n, math.MaxInt64, uploadKept.Milliseconds()},
		})
	}
}

// uploadScript adds ARGV[1], which may be 0 to look, to the sum at the key, unless
// that would be more than ARGV[2]. It gives whether it was added, and the sum.
const uploadScript = `
local sum, n = tonumber(redis.call('GET', KEYS[1])) or 0, tonumber(ARGV[1])
if sum + n > tonumber(ARGV[2]) then return {0, sum} end
if n == 0 then return {1, sum} end
redis.call('SET', KEYS[1], string.format('%d', sum + n), 'PX', ARGV[3])
return {1, sum + n}
`

// uploadedToday is what a user has uploaded, at all gateways or without Redis here.
func (g *Limiter) uploadedToday(ctx context.Context, u identity.User) (int64, error) {
	today := time.Now().UTC().Format(time.DateOnly)
	s := g.shared
	if s == nil {
		return g.budgets.sum(u, today), nil
	}
	r, err := s.ask(ctx, call{
		s.scripts.uploads, []string{s.keys.uploads(u, today)}, []any{0, math.MaxInt64, uploadKept.Milliseconds()},
	})
	if err != nil {
		return 0, err
	}
	reply, err := r[0].Int64Slice()
	if err == nil && len(reply) != 2 {
		err = errForm
	}
	if err != nil {
		return 0, err
	}
	return reply[1], nil
}

func (k keys) uploads(u identity.User, day string) string {
	return k.prefix + "limit:upload:" + day + ":" + u.String()
}

// budgets are those of the users who are here, and the uploads of today's.
type budgets struct {
	// Guarded by mu.
	mu   sync.Mutex
	of   map[holder]*Quota // bound: the sessions there are
	sums *simplelru.LRU[identity.User, uploads]
}

// holder is whose a budget is. A user has one for all listeners that say the same.
type holder struct {
	user identity.User
	Quotas
}

// uploads is what a user has uploaded on a day.
type uploads struct {
	day string
	sum int64
}

func newBudgets() *budgets {
	sums, err := simplelru.NewLRU[identity.User, uploads](maxUploaders, nil)
	if err != nil {
		panic(err) // only of a size below 1
	}
	return &budgets{of: make(map[holder]*Quota), sums: sums}
}

// upload adds n to the user's sum of the day, unless that would be too much.
func (b *budgets) upload(u identity.User, day string, n, most int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	known, _ := b.sums.Get(u)
	if known.day != day {
		known = uploads{day: day}
	}
	if n > most-known.sum {
		return false
	}
	known.sum += n
	b.sums.Add(u, known)
	return true
}

// overdraw adds n to the user's sum of the day, whatever it is.
func (b *budgets) overdraw(u identity.User, day string, n int64) {
	_ = b.upload(u, day, n, math.MaxInt64)
}

// sum is what is known here of the user's day.
func (b *budgets) sum(u identity.User, day string) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if known, _ := b.sums.Peek(u); known.day == day {
		return known.sum
	}
	return 0
}

// uploaded is what all gateways together know; less than what is known here after
// Redis was away.
func (b *budgets) uploaded(u identity.User, day string, sum int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if known, _ := b.sums.Get(u); known.day != day || known.sum < sum {
		b.sums.Add(u, uploads{day, sum})
	}
}

// Quota is what the user of a visit that has entered may use; nil when there is no
// bound. It is the visit's until Leave.
func (v *Conn) Quota() *Quota {
	g, at := v.gate, holder{v.user, v.limits.UserQuota}
	if v.stage != inHouse || at.Quotas == (Quotas{}) && !g.uploads {
		return nil
	}
	b := g.budgets
	b.mu.Lock()
	defer b.mu.Unlock()
	if v.budget == nil {
		if v.budget = b.of[at]; v.budget == nil {
			v.budget = g.newBudget(at)
			b.of[at] = v.budget
		}
		v.budget.sessions++
	}
	return v.budget
}

func (g *Limiter) newBudget(at holder) *Quota {
	return &Quota{
		gate: g, user: at.user, upload: int64(at.AppendBytesPerDay), commands: bucket(at.CommandsPerSecond), in: bucket(at.BytesInPerSecond), out: bucket(at.BytesOutPerSecond),
	}
}

func bucket(perSecond int) *rate.Limiter {
	if perSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(perSecond), burst*perSecond)
}

// release lets go of a visit's budget. A user who comes back at once has a full
// one: it is full after burst seconds anyway.
func (b *budgets) release(v *Conn) {
	if v.budget == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if v.budget.sessions--; v.budget.sessions == 0 {
		delete(b.of, holder{v.user, v.limits.UserQuota})
	}
	v.budget = nil
}
