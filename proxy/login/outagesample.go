package login

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"sync"
	"time"
	"unicode/utf8"

	"imapgate/auth"
	"imapgate/internal/event"
	"imapgate/internal/identity"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// errMasked reports a user denied without a backend but answered as UNAVAILABLE, like the
// users of a group in an outage.
var errMasked = errors.New("answered as an unavailable account")

// noBackend is the group of users that the gateway itself answers as UNAVAILABLE: they are
// paused, or no method can verify their password.
const noBackend = ""

// outageSample tracks the logins of users whose backend verifies the password. A wrong
// password gets UNAVAILABLE while the user is paused or the backend is down. An unknown
// user who is denied at that time would be recognizable as unknown.
//
// So each unknown name is assigned to the group of a recently seen user, and answered like
// that group. The assignment is stable while the groups' shares are. A name that gets
// UNAVAILABLE is then as likely unknown as any other.
type outageSample struct {
	// Set once.
	key  []byte // HMAC key that assigns names to groups
	seed maphash.Seed

	mu sync.Mutex
	// Guarded by mu.
	ring    [256]sampledUser
	added   int            // members ever added
	index   map[uint64]int // position of a user in ring
	outages map[outageKey]outage
}

// outageKey identifies the logins that an outage affects: a group and a kind of credential.
// A provider outage may affect tokens but not passwords.
type outageKey struct {
	group      string
	credential credentialType
}

// credentialType classifies a client's credential.
type credentialType uint8

const (
	anyCredential credentialType = iota
	passwordCredential
	nonUTF8Password // a backend may reject invalid UTF-8
	tokenCredential
	longTokenCredential // a backend may not read all of it
)

// outageKeyOf returns the key for an attempt's credential at a group, and the size of a long
// token in bytes: a backend may read tokens up to some length.
func outageKeyOf(a *Attempt, group string) (key outageKey, size int) {
	token := a.Login.Token.Reveal()
	switch {
	case token == "" && !utf8.ValidString(a.Login.Password.Reveal()):
		return outageKey{group, nonUTF8Password}, 0
	case token == "":
		return outageKey{group, passwordCredential}, 0
	case len(token) > upstream.LongTokenSize:
		return outageKey{group, longTokenCredential}, len(token)
	}
	return outageKey{group, tokenCredential}, 0
}

// sampledUser is a user and their backend, or noBackend.
type sampledUser struct {
	user  uint64 // keyed hash of the name
	group string
}

// outage describes the last login at a backend that was answered UNAVAILABLE.
type outage struct {
	duration time.Duration
	verdict  upstream.Verdict // never VerdictRight
	size     int              // shortest long token that was not read
}

// newOutageSample returns an empty sample. Gateways that share the secret answer a name
// alike.
func newOutageSample(secret identity.Secret) *outageSample {
	text := secret.Reveal()
	if secret.IsZero() {
		text = rand.Text()
	}
	mac := hmac.New(sha256.New, []byte(text))
	mac.Write([]byte("groups of unknown users"))
	return &outageSample{
		key: mac.Sum(nil), seed: maphash.MakeSeed(), index: map[uint64]int{}, outages: map[outageKey]outage{{group: noBackend}: {}},
	}
}

// addUser records the group of a user.
func (s *outageSample) addUser(user identity.User, group string) {
	hash := maphash.Comparable(s.seed, user)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, known := s.index[hash]
	if !known {
		i = s.added % len(s.ring)
		s.added++
		delete(s.index, s.ring[i].user) // the oldest, if the ring is full
	}
	s.ring[i], s.index[hash] = sampledUser{hash, group}, i
}

// recordAnswer records a backend's answer to a login and how long it took. An answer that
// only the right password can cause shows that the backend verifies passwords. That ends the
// outage, unless it concerns only longer tokens.
func (s *outageSample) recordAnswer(key outageKey, size int, err error, took time.Duration) {
	verdict, groupKey, verifies := upstream.VerdictOf(err), outageKey{group: key.group}, false
	s.mu.Lock()
	defer s.mu.Unlock()
	old, isKnown := s.outages[key]
	switch upstream.ResultOf(context.Background(), err) {
	case event.ConnectOK, event.ConnectDenied:
		if verdict == upstream.VerdictNone { // the backend was not asked
			return
		}
		verifies = true
		delete(s.outages, groupKey)
	case event.ConnectRefused, event.ConnectNotAccepted:
		verifies = verdict == upstream.VerdictRight || verdict != upstream.VerdictNone && errors.As(err, new(*upstream.RefusedError)) // which is forwarded
		delete(s.outages, groupKey)
		if verifies {
			break
		}
		if isKnown {
			size = min(size, old.size)
		}
		s.outages[key] = outage{took, verdict, size}
	case event.ConnectUnreachable, event.ConnectTLS, event.ConnectTimeout, event.ConnectClosed, event.ConnectProtocol,
		event.ConnectDown, event.ConnectBusy:
		s.outages[groupKey] = outage{duration: took, verdict: verdict}
	}
	if verifies && size >= old.size {
		delete(s.outages, key)
	}
}

// groupOf returns the group that a name is assigned to, if any user was seen.
func (s *outageSample) groupOf(name identity.User) (group string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sizes := map[string]int{}
	for _, member := range s.ring[:min(s.added, len(s.ring))] {
		sizes[member.group]++
	}
	best := math.Inf(1)
	for g, size := range sizes { // weighted rendezvous hashing
		if score := -math.Log(s.hashUnit(g, name)) / float64(size); score < best {
			group, best = g, score
		}
	}
	return group, !math.IsInf(best, 1)
}

// outageAt returns the current outage for a key, if there is one.
func (s *outageSample) outageAt(key outageKey, size int) (outage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.outages[key]
	if !ok || size < o.size {
		o, ok = s.outages[outageKey{group: key.group}]
	}
	return o, ok
}

// hashUnit returns a number between 0 and 1 derived from a group and a name.
func (s *outageSample) hashUnit(group string, name identity.User) float64 {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(group))
	mac.Write([]byte{0}) // separator; not valid in names
	mac.Write([]byte(name.String()))
	return (float64(binary.BigEndian.Uint64(mac.Sum(nil))>>11) + 0.5) / (1 << 53)
}

// maskRoute updates the outage sample with the result of resolveRoute for an unverified user. A
// user without a backend is answered like the group of their name, if that group has an
// outage.
func (c *Connector) maskRoute(a *Attempt, id auth.Identity, err error) error {
	switch {
	case err == nil, errors.Is(err, errNoCredential):
		c.outages.addUser(id.User(), a.Route.Backend)
	case errors.Is(err, routing.ErrPaused), errors.Is(err, errUnverified):
		c.outages.addUser(id.User(), noBackend)
	case errors.Is(err, routing.ErrNoUser), errors.Is(err, routing.ErrBlocked):
		if text := c.maintenanceFor(id.User()); text != "" {
			return fmt.Errorf("%w: %w: %w", errMasked, err, &upstream.MaintenanceError{Text: text})
		}
		if o, ok := c.maskingOutage(a, id); ok {
			a.minTime, a.verdict = o.duration, o.verdict
			return fmt.Errorf("%w: %w", errMasked, err)
		}
	}
	return err
}

// maintenanceFor returns what an unknown name is told: the text of the backend of its group.
func (c *Connector) maintenanceFor(user identity.User) string {
	group, _ := c.outages.groupOf(user)
	if b := c.deps.Backends[group]; b != nil {
		return b.Maintenance()
	}
	return ""
}

// maskingOutage returns the outage that this client's credential would meet in the group of
// an unknown name.
func (c *Connector) maskingOutage(a *Attempt, id auth.Identity) (outage, bool) {
	group, ok := c.outages.groupOf(id.User())
	if !ok {
		return outage{}, false
	}
	if b := c.deps.Backends[group]; b != nil && !b.AcceptsCredentials(id.Password(), id.Token()) {
		return outage{}, true // as for errNoCredential
	}
	return c.outages.outageAt(outageKeyOf(a, group))
}
