package proxy

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
	"imapgate/internal/identity"
	"imapgate/proxy/upstream"
	"imapgate/routing"
)

// errMasked is a user whom the gateway denies without a backend, while others are
// told that their account is unavailable. It is answered as one of those.
var errMasked = errors.New("answered as a user whose account is unavailable")

// noBackend is the group of users whom the gateway itself tells that their account is
// unavailable: they are paused, or nobody may check their password.
const noBackend = ""

// outageSample is how users fare whose backend checks their password. Whoever asks about
// such a user with a wrong password hears UNAVAILABLE while the user is paused or the
// backend is down, and an unknown user who was denied meanwhile would be known to be
// none. So an unknown name falls to the group of one of the users seen of late, always
// the same as long as the groups' shares are, and is answered as that group is: a name
// that is UNAVAILABLE is as likely to be nobody's as any other.
type outageSample struct {
	// Set once.
	key  []byte // of the hash by which names fall to groups
	seed maphash.Seed

	mu sync.Mutex
	// Guarded by mu.
	ring       [256]sampledUser
	added      int            // members that were ever added
	index      map[uint64]int // where a user is in ring
	groupSizes map[string]int // of each group in ring
	outages    map[outageKey]outage
}

// outageKey is how a user comes to its backend: what is away for tokens, as their provider
// is, may not be for passwords.
type outageKey struct {
	group      string
	credential credentialType
	size       int // bytes of a long token: a backend may read them up to a length
}

// withoutSize is the way without the size.
func (k outageKey) withoutSize() outageKey {
	return outageKey{group: k.group, credential: k.credential}
}

// credentialType is what a client shows.
type credentialType uint8

const (
	anyCredential credentialType = iota
	passwordCredential
	nonUTF8Password // not UTF-8, which a backend may not take for one
	tokenCredential
	longTokenCredential // which a backend may not read to its end
)

// outageKeyOf is how an attempt comes to a backend.
func outageKeyOf(a *attempt, group string) outageKey {
	token := a.login.Token.Reveal()
	switch {
	case token == "" && !utf8.ValidString(a.login.Password.Reveal()):
		return outageKey{group: group, credential: nonUTF8Password}
	case token == "":
		return outageKey{group: group, credential: passwordCredential}
	case len(token) > upstream.LongTokenSize:
		return outageKey{group: group, credential: longTokenCredential, size: len(token)}
	}
	return outageKey{group: group, credential: tokenCredential}
}

// sampledUser is one user and the backend that it lives at, or noBackend.
type sampledUser struct {
	user  uint64 // a keyed hash
	group string
}

// outage is how the last login at a backend was answered UNAVAILABLE.
type outage struct {
	duration time.Duration
	verdict  upstream.Verdict // never Right
	size     int              // of the shortest long token that was not read
}

// newOutageSample makes a sample. With a secret that all gateways share, a name is answered
// alike by all of them.
func newOutageSample(secret identity.Secret) *outageSample {
	s := &outageSample{
		key: make([]byte, sha256.Size), seed: maphash.MakeSeed(),
		index: map[uint64]int{}, groupSizes: map[string]int{}, outages: map[outageKey]outage{{group: noBackend}: {}},
	}
	if secret.IsZero() {
		_, _ = rand.Read(s.key) // never fails
		return s
	}
	mac := hmac.New(sha256.New, []byte(secret.Reveal()))
	mac.Write([]byte("groups of unknown users"))
	s.key = mac.Sum(nil)
	return s
}

// addUser notes where a user lives, or noBackend.
func (s *outageSample) addUser(user identity.User, group string) {
	hash := maphash.Comparable(s.seed, user)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, known := s.index[hash]
	if !known {
		i = s.added % len(s.ring)
		s.added++
	}
	if old := s.ring[i]; known || s.added > len(s.ring) {
		delete(s.index, old.user)
		if s.groupSizes[old.group]--; s.groupSizes[old.group] == 0 {
			delete(s.groupSizes, old.group)
		}
	}
	s.ring[i], s.index[hash] = sampledUser{hash, group}, i
	s.groupSizes[group]++
}

// recordAnswer notes how a backend answered a login, after so long. An answer that only the
// right password brings about shows that the backend checks the others.
func (s *outageSample) recordAnswer(key outageKey, err error, took time.Duration) {
	verdict, groupKey := upstream.VerdictOf(err), outageKey{group: key.group}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch upstream.ResultOf(err) {
	case upstream.ResultOK, upstream.ResultDenied:
		if verdict == upstream.VerdictNone { // no backend was asked
			return
		}
		s.endOutage(key)
		delete(s.outages, groupKey)
	case upstream.ResultRefused, upstream.ResultNotAccepted:
		delete(s.outages, groupKey)
		if verdict == upstream.VerdictRight || verdict != upstream.VerdictNone && errors.As(err, new(*upstream.RefusedError)) { // which is forwarded
			s.endOutage(key)
			return
		}
		size := key.size
		if old, ok := s.outages[key.withoutSize()]; ok {
			size = min(size, old.size)
		}
		s.outages[key.withoutSize()] = outage{took, verdict, size}
	case upstream.ResultUnreachable, upstream.ResultTLS, upstream.ResultTimeout, upstream.ResultClosed, upstream.ResultProtocol,
		upstream.ResultDown, upstream.ResultBusy:
		s.outages[groupKey] = outage{duration: took, verdict: verdict}
	}
}

// groupOf is the one that a name falls to, if any user was seen.
func (s *outageSample) groupOf(name identity.User) (group string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	best := math.Inf(1)
	for g, size := range s.groupSizes { // weighted rendezvous hashing
		if score := -math.Log(s.hashUnit(g, name)) / float64(size); score < best {
			group, best = g, score
		}
	}
	return group, !math.IsInf(best, 1)
}

// outageAt is the one under way there, if there is one.
func (s *outageSample) outageAt(key outageKey) (outage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.outages[key.withoutSize()]
	if !ok || key.size < o.size {
		o, ok = s.outages[outageKey{group: key.group}]
	}
	return o, ok
}

// endOutage ends an outage that is one for what was shown. mu is held.
func (s *outageSample) endOutage(key outageKey) {
	if key.size >= s.outages[key.withoutSize()].size {
		delete(s.outages, key.withoutSize())
	}
}

// hashUnit is a number between 0 and 1 that depends on nothing but a group and a name.
func (s *outageSample) hashUnit(group string, name identity.User) float64 {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(group))
	mac.Write([]byte{0}) // which no name has
	mac.Write([]byte(name.String()))
	return (float64(binary.BigEndian.Uint64(mac.Sum(nil))>>11) + 0.5) / (1 << 53)
}

// resolveMaskedRoute is place, and has users whom no backend judges answered as others are.
func (c *connection) resolveMaskedRoute(ctx context.Context, a *attempt, id auth.Identity) error {
	err := c.resolveRoute(ctx, a, id)
	if id.IsVerified() {
		return err
	}
	sample := c.server.outages
	switch {
	case err == nil, errors.Is(err, errNoCredential):
		sample.addUser(id.User(), a.route.Backend)
	case errors.Is(err, routing.ErrPaused), errors.Is(err, errUnverified):
		sample.addUser(id.User(), noBackend)
	case errors.Is(err, routing.ErrNoUser), errors.Is(err, routing.ErrBlocked):
		if o, ok := c.maskingOutage(a, id); ok {
			a.minTime, a.verdict = o.duration, o.verdict
			return fmt.Errorf("%w: %w", errMasked, err)
		}
	}
	return err
}

// maskingOutage is why a user of the group that an unknown name falls to would hear
// UNAVAILABLE, with what this client shows.
func (c *connection) maskingOutage(a *attempt, id auth.Identity) (outage, bool) {
	group, ok := c.server.outages.groupOf(id.User())
	if !ok {
		return outage{}, false
	}
	if b := c.server.deps.Backends[group]; b != nil && !b.AcceptsCredentials(id.Password(), id.Token()) {
		return outage{}, true // as errNoCredential
	}
	return c.server.outages.outageAt(outageKeyOf(a, group))
}
