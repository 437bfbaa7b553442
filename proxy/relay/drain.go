package relay

import (
	"cmp"
	"math"
	"slices"
	"time"

	"imapgate/internal/event"
)

const (
	drainInterval = 100 * time.Millisecond
	drainRate     = 100 // sessions a second that the next gateway can take without overload
	// spliceSilence is how long a spliced session must have been silent to end in a drain.
	spliceSilence = 200 * time.Millisecond
)

// Drain ends the sessions gradually over a time, so that their clients do not reach the
// next gateway all at once: the longest silent first. A session of mux can end between two
// commands at any time. A spliced one that is not silent gets the whole time. Drain returns
// when all sessions have ended, or after that time.
func (r *Registry) Drain(over time.Duration) {
	start := time.Now()
	spliced, muxed := r.listBySilence()
	splicedTotal, muxedTotal := len(spliced), len(muxed)
	ticker := time.NewTicker(drainInterval)
	defer ticker.Stop()
	for {
		elapsed := time.Since(start)
		endLongestSilent(muxed, muxedToKeep(muxedTotal, elapsed, over), event.Shutdown)
		if r.Len() == 0 || elapsed >= over {
			return
		}
		endLongestSilent(spliced, splicedToKeep(splicedTotal, elapsed, over), event.Drained)
		<-ticker.C
		spliced, muxed = r.listBySilence()
	}
}

// silentSession is a session that may end in a drain.
type silentSession struct {
	*Session
	silence time.Duration
	canEnd  bool
}

// listBySilence returns the sessions that have not been asked to end, the longest silent
// first.
func (r *Registry) listBySilence() (spliced, muxed []silentSession) {
	now := r.Clock.Update()
	for _, s := range r.Sessions() {
		s.mu.Lock()
		u, ending := s.usage(), s.endReason != ""
		s.mu.Unlock()
		silence := Elapsed(now, u.LastByte)
		switch {
		case ending:
		case u.Spliced:
			spliced = append(spliced, silentSession{s, silence, silence >= spliceSilence})
		default:
			muxed = append(muxed, silentSession{s, silence, true})
		}
	}
	longestFirst := func(a, b silentSession) int { return cmp.Compare(b.silence, a.silence) }
	slices.SortFunc(spliced, longestFirst)
	slices.SortFunc(muxed, longestFirst)
	return spliced, muxed
}

// endLongestSilent ends those of the sessions that can end, from the first on, until keep
// are left.
func endLongestSilent(sessions []silentSession, keep int, reason event.Reason) {
	for _, s := range sessions[:max(len(sessions)-keep, 0)] {
		if s.canEnd {
			s.End(reason)
		}
	}
}

// splicedToKeep returns how many of n spliced sessions continue after elapsed of the drain
// time.
func splicedToKeep(n int, elapsed, drain time.Duration) int {
	if elapsed >= drain {
		return 0
	}
	return int(math.Ceil(float64(n) * float64(drain-elapsed) / float64(drain)))
}

// muxedToKeep is splicedToKeep for mux sessions. They end at drainRate per second or
// faster, and a tenth of the drain time is left for the last BYEs.
func muxedToKeep(n int, elapsed, drain time.Duration) int {
	linear := splicedToKeep(n, elapsed, drain*9/10)
	return max(0, min(linear, n-drainRate-int(drainRate*elapsed.Seconds())))
}
