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

// errAsOthers is a user whom the gateway denies without a backend, while others are
// told that their account is unavailable. It is answered as one of those.
var errAsOthers = errors.New("answered as a user whose account is unavailable")

// noBackend is the group of users whom the gateway itself tells that their account is
// unavailable: they are paused, or nobody may check their password.
const noBackend = ""

// sample is how users fare whose backend checks their password. Whoever asks about
// such a user with a wrong password hears UNAVAILABLE while the user is paused or the
// backend is down, and an unknown user who was denied meanwhile would be known to be
// none. So an unknown name falls to the group of one of the users seen of late, always
// the same as long as the groups' shares are, and is answered as that group is: a name
// that is UNAVAILABLE is as likely to be nobody's as any other.
type sample struct {
	// Set once.
	key  []byte // of the hash by which names fall to groups
	seed maphash.Seed

	mu sync.Mutex
	// Guarded by mu.
	ring    [256]member
	n       int            // members that were ever added
	at      map[uint64]int // where a user is in ring
	size    map[string]int // of each group in ring
	outages map[way]outage
}

// way is how a user comes to its backend: what is away for tokens, as their provider
// is, may not be for passwords.
type way struct {
	group string
	shown credential
	size  int // bytes of a long token: a backend may read them up to a length
}

// key is the way without the size.
func (w way) key() way { return way{group: w.group, shown: w.shown} }

// credential is what a client shows.
type credential uint8

const (
	anything credential = iota
	aPassword
	anOddPassword // not UTF-8, which a backend may not take for one
	aToken
	aLongToken // which a backend may not read to its end
)

// wayOf is how an attempt comes to a backend.
func wayOf(a *attempt, group string) way {
	token := a.login.Token.Reveal()
	switch {
	case token == "" && !utf8.ValidString(a.login.Password.Reveal()):
		return way{group: group, shown: anOddPassword}
	case token == "":
		return way{group: group, shown: aPassword}
	case len(token) > upstream.LongToken:
		return way{group: group, shown: aLongToken, size: len(token)}
	}
	return way{group: group, shown: aToken}
}

// member is one user and the backend that it lives at, or noBackend.
type member struct {
	user  uint64 // a keyed hash
	group string
}

// outage is how the last login at a backend was answered UNAVAILABLE.
type outage struct {
	took    time.Duration
	verdict upstream.Verdict // never Right
	size    int              // of the shortest long token that was not read
}

// newSample makes a sample. With a secret that all gateways share, a name is answered
// alike by all of them.
func newSample(secret identity.Secret) *sample {
	s := &sample{
		key: make([]byte, sha256.Size), seed: maphash.MakeSeed(),
		at: map[uint64]int{}, size: map[string]int{}, outages: map[way]outage{{group: noBackend}: {}},
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

// saw notes where a user lives, or noBackend.
func (s *sample) saw(user identity.User, group string) {
	hash := maphash.Comparable(s.seed, user)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, known := s.at[hash]
	if !known {
		i = s.n % len(s.ring)
		s.n++
	}
	if old := s.ring[i]; known || s.n > len(s.ring) {
		delete(s.at, old.user)
		if s.size[old.group]--; s.size[old.group] == 0 {
			delete(s.size, old.group)
		}
	}
	s.ring[i], s.at[hash] = member{hash, group}, i
	s.size[group]++
}

// answered notes how a backend answered a login, after so long. An answer that only the
// right password brings about shows that the backend checks the others.
func (s *sample) answered(at way, err error, took time.Duration) {
	v, every := upstream.VerdictOf(err), way{group: at.group}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch upstream.ResultOf(err) {
	case upstream.ResultOK, upstream.ResultDenied:
		if v == upstream.VerdictNone { // no backend was asked
			return
		}
		s.over(at)
		delete(s.outages, every)
	case upstream.ResultRefused, upstream.ResultNotTaken:
		delete(s.outages, every)
		if v == upstream.VerdictRight || v != upstream.VerdictNone && errors.As(err, new(*upstream.Refused)) { // which is forwarded
			s.over(at)
			return
		}
		size := at.size
		if old, is := s.outages[at.key()]; is {
			size = min(size, old.size)
		}
		s.outages[at.key()] = outage{took, v, size}
	case upstream.ResultUnreachable, upstream.ResultTLS, upstream.ResultTimeout, upstream.ResultClosed, upstream.ResultProtocol,
		upstream.ResultDown, upstream.ResultBusy:
		s.outages[every] = outage{took: took, verdict: v}
	}
}

// group is the one that a name falls to, if any user was seen.
func (s *sample) group(name identity.User) (group string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	least := math.Inf(1)
	for g, size := range s.size { // weighted rendezvous hashing
		if score := -math.Log(s.uniform(g, name)) / float64(size); score < least {
			group, least = g, score
		}
	}
	return group, !math.IsInf(least, 1)
}

// outage is the one under way there, if there is one.
func (s *sample) outage(at way) (outage, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, is := s.outages[at.key()]
	if !is || at.size < o.size {
		o, is = s.outages[way{group: at.group}]
	}
	return o, is
}

// over ends an outage that is one for what was shown. mu is held.
func (s *sample) over(at way) {
	if at.size >= s.outages[at.key()].size {
		delete(s.outages, at.key())
	}
}

// uniform is a number between 0 and 1 that depends on nothing but a group and a name.
func (s *sample) uniform(group string, name identity.User) float64 {
	mac := hmac.New(sha256.New, s.key)
	mac.Write([]byte(group))
	mac.Write([]byte{0}) // which no name has
	mac.Write([]byte(name.String()))
	return (float64(binary.BigEndian.Uint64(mac.Sum(nil))>>11) + 0.5) / (1 << 53)
}

// placeFor is place, and has users whom no backend judges answered as others are.
func (s *session) placeFor(ctx context.Context, a *attempt, id auth.Identity) error {
	err := s.place(ctx, a, id)
	if id.Decided() {
		return err
	}
	known := s.server.sample
	switch {
	case err == nil, errors.Is(err, errNothingToShow):
		known.saw(id.User(), a.route.Backend)
	case errors.Is(err, routing.ErrPaused), errors.Is(err, errNobodyDecides):
		known.saw(id.User(), noBackend)
	case errors.Is(err, routing.ErrNoUser), errors.Is(err, routing.ErrBlocked):
		if o, ok := s.outageFor(a, id); ok {
			a.least, a.verdict = o.took, o.verdict
			return fmt.Errorf("%w: %w", errAsOthers, err)
		}
	}
	return err
}

// outageFor is why a user of the group that an unknown name falls to would hear
// UNAVAILABLE, with what this client shows.
func (s *session) outageFor(a *attempt, id auth.Identity) (outage, bool) {
	group, ok := s.server.sample.group(id.User())
	if !ok {
		return outage{}, false
	}
	if b := s.server.rooms.Backends[group]; b != nil && !b.Shows(id.Password(), id.Token()) {
		return outage{}, true // as errNothingToShow
	}
	return s.server.sample.outage(wayOf(a, group))
}
