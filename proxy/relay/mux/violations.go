package mux

import (
	"sync"
	"time"

	"imapgate/internal/identity"
)

// A backend that violates IMAP ends sessions or has them spliced. Repeated violations
// splice sessions from their beginning:
//
//   - A session counts once, and only if nothing its client has sent can be the cause.
//   - A user with two such sessions in an hour is spliced, but no other user.
//   - A backend with five such users in an hour, and one for every hundred sessions, is
//     spliced for all users: for an hour, then for two, up to a day. More than a day after
//     the last splicing ended, it starts at an hour again.
//
// So no user can have another one spliced by provoking violations, and a repaired backend
// recovers automatically.
const (
	violationWindow         = time.Hour
	userSpliceThreshold     = 2
	minAffectedUsers        = 5
	sessionsPerAffectedUser = 100
	minSpliceDuration       = time.Hour
	maxSpliceDuration       = 24 * time.Hour
	maxTrackedUsers         = 10_000 // users with remembered violations
)

// violationTracker tracks the protocol violations of a backend.
type violationTracker struct {
	mu             sync.Mutex
	users          map[identity.User]userViolations // Guarded by mu. At most maxTrackedUsers.
	spliceUntil    time.Time                        // Guarded by mu. End of splicing for all users.
	spliceDuration time.Duration                    // Guarded by mu. Last duration of splicing for all users.
	spliceAll      bool                             // Guarded by mu. Splicing applies to all users.
}

// userViolations counts a user's sessions with a violation, each less than an hour after
// the one before.
type userViolations struct {
	count int
	last  time.Time
}

// ViolationStatus is the state of a backend's violationTracker.
type ViolationStatus struct {
	Spliced       bool      `json:"spliced"`                // all new sessions are spliced, whatever their mode
	SplicedUntil  time.Time `json:"spliced_until,omitzero"` // end of Spliced
	AffectedUsers int       `json:"broken_to_users"`        // within the last hour
	SplicedUsers  int       `json:"spliced_users"`          // users whose new sessions are spliced
}

// record counts a session with a violation, at a backend with that many sessions. It
// returns true if this starts splicing for all users.
func (v *violationTracker) record(user identity.User, sessions int64, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	u, known := v.users[user]
	if !known && len(v.users) >= maxTrackedUsers {
		return false
	}
	if now.Sub(u.last) >= violationWindow {
		u.count = 0
	}
	if v.users == nil {
		v.users = map[identity.User]userViolations{}
	}
	v.users[user] = userViolations{u.count + 1, now}
	if v.spliceAll || int64(v.status(now).AffectedUsers) < max(minAffectedUsers, sessions/sessionsPerAffectedUser) {
		return false
	}
	if now.Sub(v.spliceUntil) > maxSpliceDuration {
		v.spliceDuration = 0
	}
	v.spliceDuration = min(max(2*v.spliceDuration, minSpliceDuration), maxSpliceDuration)
	v.spliceUntil, v.spliceAll = now.Add(v.spliceDuration), true
	return true
}

// shouldSplice reports whether a new session of a user must be spliced.
func (v *violationTracker) shouldSplice(user identity.User, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	u := v.users[user]
	return v.spliceAll && now.Before(v.spliceUntil) || u.count >= userSpliceThreshold && u.isRecent(now)
}

func (u userViolations) isRecent(now time.Time) bool {
	return u.count > 0 && now.Sub(u.last) < violationWindow
}

// prune removes expired violations and returns the status. spliceEnded is true once, when
// splicing for all users ends.
func (v *violationTracker) prune(now time.Time) (status ViolationStatus, spliceEnded bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for user, u := range v.users {
		if !u.isRecent(now) {
			delete(v.users, user)
		}
	}
	if v.spliceAll && !now.Before(v.spliceUntil) {
		v.spliceAll, spliceEnded = false, true
		clear(v.users) // earlier violations do not predict later ones
	}
	return v.status(now), spliceEnded
}

// status returns the current status. mu is held.
func (v *violationTracker) status(now time.Time) ViolationStatus {
	status := ViolationStatus{Spliced: v.spliceAll}
	if v.spliceAll {
		status.SplicedUntil = v.spliceUntil
	}
	for _, u := range v.users {
		if !u.isRecent(now) {
			continue
		}
		status.AffectedUsers++
		if u.count >= userSpliceThreshold {
			status.SplicedUsers++
		}
	}
	return status
}
