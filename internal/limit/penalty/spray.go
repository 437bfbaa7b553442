package penalty

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync"
	"time"

	"imapgate/internal/identity"
)

const (
	// sprayMinimum is the number of failures in a minute below which there is no spray.
	sprayMinimum = 50
	// sprayTimes the usual share of failures is suspicious. The share counts as at least
	// usualMinimum, and while fewer than learnedLogins logins are known, as usualUnknown.
	sprayTimes    = 5
	usualMinimum  = 0.01
	usualUnknown  = 0.1
	learnedLogins = 250
	// sprayMaximum is a share that is suspicious whatever is usual.
	sprayMaximum = 0.9
	// sprayKept is how long a suspicion lasts.
	sprayKept = 10 * time.Minute
	// usualKept is what is kept of the usual counts each minute: about five hours.
	usualKept = 1 - 1.0/300
	// suspectWeight is that of a minute under suspicion: an attack is not usual, but what
	// continues for hours is.
	suspectWeight = 0.1
)

// Spray is a suspicion that a few passwords are being tried for many users.
type Spray struct {
	Suspected bool         // or no longer
	Net       netip.Prefix // where, if one network does it; zero: everywhere
	Users     int          // about how many were tried
}

// logins counts them by their result.
type logins struct{ failed, all float64 }

func (l logins) share() float64 { return l.failed / max(1, l.all) }

// SprayAlert suspects spraying when the failures of the last minute are far more of all logins
// than usual, and most of them are of different users.
type SprayAlert struct {
	// Set once.
	onChange func(Spray) // called without a lock
	began    time.Time
	seed     maphash.Seed

	// Guarded by mu.
	mu       sync.Mutex
	minute   int64
	now      logins          // of this minute
	usual    logins          // of the last hours, the older the less
	users    map[uint64]bool // who were tried in this minute; bound: maxTried
	until    time.Duration   // of the suspicion
	reported bool
}

// maxTried bounds the users who are told apart.
const maxTried = 4096

// NewSprayAlert returns a SprayAlert that reports changes.
func NewSprayAlert(onChange func(Spray)) *SprayAlert {
	return &SprayAlert{onChange: onChange, began: time.Now(), seed: maphash.MakeSeed(), users: make(map[uint64]bool)}
}

// Failed counts a failed login of a user, Succeeded one that was right.
func (s *SprayAlert) Failed(u identity.User) { s.count(1, maphash.Comparable(s.seed, u)) }

// Succeeded counts a successful login.
func (s *SprayAlert) Succeeded() { s.count(0, 0) }

func (s *SprayAlert) count(failed float64, user uint64) {
	t := time.Since(s.began)
	s.mu.Lock()
	if minute := int64(t / time.Minute); minute != s.minute {
		weight := 1.0
		if t < s.until {
			weight = suspectWeight
		}
		s.usual.failed, s.usual.all = s.usual.failed*usualKept+weight*s.now.failed, s.usual.all*usualKept+weight*s.now.all
		s.minute, s.now = minute, logins{}
		clear(s.users)
	}
	s.now.all++
	s.now.failed += failed
	if failed > 0 && len(s.users) < maxTried {
		s.users[user] = true
	}
	usual := max(s.usual.share(), usualMinimum)
	if s.usual.all < learnedLogins {
		usual = max(usual, usualUnknown)
	}
	many := float64(len(s.users)) >= min(s.now.failed, maxTried)/2
	if failed > 0 && s.now.failed >= sprayMinimum && many && s.now.share() >= min(sprayTimes*usual, sprayMaximum) {
		s.until = t + sprayKept
	}
	suspected, n := t < s.until, len(s.users)
	changed := suspected != s.reported
	s.reported = suspected
	s.mu.Unlock()
	if changed {
		s.onChange(Spray{Suspected: suspected, Users: n})
	}
}

// Suspected reports whether spraying is suspected now.
func (s *SprayAlert) Suspected() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Since(s.began) < s.until
}

// manyUsers tried from one address within Settings.BanWithin are a spray.
const manyUsers = 10

// distinctUsers estimates how many users have set bits (linear counting).
func distinctUsers(set uint64) int {
	if set == ^uint64(0) {
		return 256 // or more
	}
	// 64 * ln(64/zeros), by its series in harmonic numbers.
	n := 0.0
	for zeros := 64; zeros > 64-bits.OnesCount64(set); zeros-- {
		n += 64 / float64(zeros)
	}
	return int(n + 0.5)
}
