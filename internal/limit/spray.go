package limit

import (
	"hash/maphash"
	"sync"
	"time"

	"imapgate/internal/identity"
)

const (
	// sprayMinute is the while that is compared with the baseline.
	sprayMinute = time.Minute
	// sprayFew failures in it are never taken for a spray.
	sprayFew = 50
	// sprayTimes the baseline is suspicious.
	sprayTimes = 5
	// sprayLeast is the baseline at its lowest: one login in a hundred is wrong
	// anywhere.
	sprayLeast = 0.01
	// sprayKeep is how long a suspicion lasts.
	sprayKeep = 10 * time.Minute
	// sprayBits is the size of the set of users.
	sprayBits = 4096
	// spraySlow is the share of the last minute in the baseline: about half an hour.
	spraySlow = 1.0 / 30
	// sprayStubborn is its share under suspicion. An attack is no baseline, but what
	// goes on for hours is how things are here.
	sprayStubborn = 1.0 / 300
	// sprayLearn minutes make a baseline. Before, it is taken to be sprayUnknown at
	// least: nobody knows yet whether strangers try their luck here all day.
	sprayLearn   = 5
	sprayUnknown = 0.1
)

// sprayWatch notices that many users are tried with few guesses each, from
// wherever: the share of failures is far above what it was for the last while, and
// most of them are for different users.
type sprayWatch struct {
	// Guarded by mu.
	mu       sync.Mutex
	seed     maphash.Seed // zero until the first failure
	minute   int64
	failures int
	all      int
	users    [sprayBits / 64]uint64
	tried    int     // bits that are set
	baseline float64 // the share of failures
	learned  float64 // full minutes without suspicion in it
	until    time.Duration
	told     bool // that it is suspected
}

// news is what there is to tell of spraying: nothing, or that the suspicion has
// begun or ended.
type news struct {
	fresh bool
	Spray
}

// failed counts a failure of a user.
func (w *sprayWatch) failed(u identity.User, t time.Duration) news {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.roll(t)
	if w.seed == (maphash.Seed{}) {
		w.seed = maphash.MakeSeed()
	}
	w.failures++
	w.all++
	bit := maphash.Comparable(w.seed, u) % sprayBits
	if word := &w.users[bit/64]; *word&(1<<(bit%64)) == 0 {
		*word |= 1 << (bit % 64)
		w.tried++
	}
	ratio := float64(w.failures) / float64(w.all)
	// A set that is nearly full cannot tell users apart, and was filled by many.
	many := w.tried >= min(w.failures/2, sprayBits/2)
	if w.failures >= sprayFew && many && ratio >= w.suspicious() {
		w.until = t + sprayKeep
	}
	return w.news(t)
}

// suspicious is the share of failures from which on it is too many, with mu held.
// Nine wrong of ten are nowhere ordinary.
func (w *sprayWatch) suspicious() float64 {
	usual := max(w.baseline, sprayLeast)
	if w.learned < sprayLearn {
		usual = max(usual, sprayUnknown)
	}
	return min(sprayTimes*usual, 0.9)
}

func (w *sprayWatch) succeeded(t time.Duration) news {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.roll(t)
	w.all++
	return w.news(t)
}

// news is called with mu held.
func (w *sprayWatch) news(t time.Duration) news {
	suspected := t < w.until
	n := news{fresh: suspected != w.told, Spray: Spray{Suspected: suspected, Users: w.tried}}
	w.told = suspected
	return n
}

// roll moves on to the minute it is, with mu held.
func (w *sprayWatch) roll(t time.Duration) {
	minute := int64(t / sprayMinute)
	if minute == w.minute {
		return
	}
	if w.all > 0 {
		w.learn(t)
	}
	w.minute, w.failures, w.all, w.tried = minute, 0, 0, 0
	clear(w.users[:])
}

// learn takes the minute that is over into the baseline, with mu held. A minute of
// few logins weighs less; the first minutes make a plain mean.
func (w *sprayWatch) learn(t time.Duration) {
	weight := min(1, float64(w.all)/sprayFew)
	share := sprayStubborn
	if t >= w.until {
		w.learned += weight
		share = max(1/max(1, w.learned), spraySlow)
	}
	w.baseline += (float64(w.failures)/float64(w.all) - w.baseline) * weight * share
}

// suspects says whether spraying is suspected now.
func (w *sprayWatch) suspects(t time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return t < w.until
}
