package mux

import (
	"sync"
	"time"

	"imapgate/internal/identity"
)

// A backend that breaks its promises of IMAP ends sessions, or has them spliced. Where
// it does so again and again, sessions are spliced from the beginning, by this rule:
//
//   - A session counts once, and only where nothing that its client has sent can be the cause.
//   - A user with two such sessions in an hour is spliced, and nobody else.
//   - A backend at which that befalls five users in an hour, and one for every hundred
//     sessions there, is spliced for everybody: for an hour, then two, up to a day. What
//     goes well for a day after it begins at an hour again.
//
// So no user can have another spliced, whatever they find to provoke; and a backend that
// is mended is believed again by itself.
const (
	violationWindow         = time.Hour
	userSpliceThreshold     = 2
	minAffectedUsers        = 5
	sessionsPerAffectedUser = 100
	minSpliceDuration       = time.Hour
	maxSpliceDuration       = 24 * time.Hour
	maxTrackedUsers         = 10_000 // users who are remembered
)

// violationTracker is how a backend keeps its promises.
type violationTracker struct {
	mu             sync.Mutex
	users          map[identity.User]userViolations // Guarded by mu. At most maxTrackedUsers.
	spliceUntil    time.Time                        // Guarded by mu. Everybody is spliced until then.
	spliceDuration time.Duration                    // Guarded by mu. How long everybody was the last time.
	spliceAll      bool                             // Guarded by mu. Everybody is.
}

// userViolations are the sessions of a user in which a promise was broken, none of them an hour
// behind the one before it.
type userViolations struct {
	count int
	last  time.Time
}

// ViolationStatus is what is thought of a backend.
type ViolationStatus struct {
	Spliced       bool      `json:"spliced"`                // new sessions of everybody are, whatever their mode
	SplicedUntil  time.Time `json:"spliced_until,omitzero"` // … until then
	AffectedUsers int       `json:"broken_to_users"`        // within the last hour
	SplicedUsers  int       `json:"spliced_users"`          // whose new sessions are
}

// record notes a session in which a promise was broken, at a backend with so many, and
// says whether everybody's are spliced from now on.
func (v *violationTracker) record(user identity.User, sessions int64, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	l, known := v.users[user]
	if !known && len(v.users) >= maxTrackedUsers {
		return false
	}
	if now.Sub(l.last) >= violationWindow {
		l.count = 0
	}
	if v.users == nil {
		v.users = map[identity.User]userViolations{}
	}
	v.users[user] = userViolations{l.count + 1, now}
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

// shouldSplice says whether a session of a user is to be spliced from its beginning.
func (v *violationTracker) shouldSplice(user identity.User, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.spliceAll && now.Before(v.spliceUntil) || v.users[user].shouldSplice(now)
}

func (u userViolations) isRecent(now time.Time) bool {
	return u.count > 0 && now.Sub(u.last) < violationWindow
}
func (u userViolations) shouldSplice(now time.Time) bool {
	return u.count >= userSpliceThreshold && u.isRecent(now)
}

// prune forgets what is over, and says what is left. closed is true once: everybody's
// sessions are followed again.
func (v *violationTracker) prune(now time.Time) (t ViolationStatus, spliceEnded bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for user, l := range v.users {
		if !l.isRecent(now) {
			delete(v.users, user)
		}
	}
	if v.spliceAll && !now.Before(v.spliceUntil) {
		v.spliceAll, spliceEnded = false, true
		clear(v.users) // what was broken is another question than what will be
	}
	return v.status(now), spliceEnded
}

// status counts. mu is held.
func (v *violationTracker) status(now time.Time) ViolationStatus {
	t := ViolationStatus{Spliced: v.spliceAll}
	if v.spliceAll {
		t.SplicedUntil = v.spliceUntil
	}
	for _, l := range v.users {
		if l.isRecent(now) {
			t.AffectedUsers++
		}
		if l.shouldSplice(now) {
			t.SplicedUsers++
		}
	}
	return t
}
