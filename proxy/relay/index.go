package relay

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/btree"

	"imapgate/internal/identity"
)

// indexDegree is the degree of the trees: wide nodes keep an entry at about ten bytes.
const indexDegree = 64

// place is where a session is.
type place struct{ backend, address string }

// index finds sessions by what operators ask for, in time that grows with the number of
// matches and the logarithm of the number of sessions. Each tree holds all sessions in one
// order, and ties in the order of Session.seq. It is guarded by Registry.mu.
type index struct {
	bySeq, byUser, byPlace, byClient *btree.BTreeG[*Session]
}

func newIndex() index {
	return index{
		bySeq:   newTree(func(*Session, *Session) int { return 0 }),
		byUser:  newTree(func(a, b *Session) int { return strings.Compare(a.info.User.String(), b.info.User.String()) }),
		byPlace: newTree(comparePlaces),
		// User and Client never change, so no lock is needed to read them.
		byClient: newTree(func(a, b *Session) int { return clientAddr(a).Compare(clientAddr(b)) }),
	}
}

func newTree(compare func(a, b *Session) int) *btree.BTreeG[*Session] {
	return btree.NewG(indexDegree, func(a, b *Session) bool {
		c := compare(a, b)
		return c < 0 || c == 0 && a.seq < b.seq
	})
}

func comparePlaces(a, b *Session) int {
	return cmp.Or(strings.Compare(a.place.backend, b.place.backend), strings.Compare(a.place.address, b.place.address))
}

// clientAddr returns the client's address in the form in which networks contain it.
func clientAddr(s *Session) netip.Addr { return s.info.Client.Addr().Unmap().WithZone("") }

func (x *index) trees() [4]*btree.BTreeG[*Session] {
	return [...]*btree.BTreeG[*Session]{x.bySeq, x.byUser, x.byPlace, x.byClient}
}

func (x *index) add(s *Session) {
	for _, tree := range x.trees() {
		tree.ReplaceOrInsert(s)
	}
}

// remove removes s and reports whether it was there.
func (x *index) remove(s *Session) (found bool) {
	for _, tree := range x.trees() {
		_, found = tree.Delete(s)
	}
	return found
}

// Query selects sessions. A zero field selects all.
type Query struct {
	User    identity.User
	Backend string
	Address string // host:port; needs Backend
	Client  netip.Prefix
	After   uint64 // Session.Seq of the last session that is not wanted
}

// Select returns the sessions that match, in the order of their logins.
func (r *Registry) Select(q Query) []*Session {
	q.Client = plainPrefix(q.Client)
	r.mu.Lock()
	found := r.sessions.find(&q)
	r.mu.Unlock()
	slices.SortFunc(found, func(a, b *Session) int { return cmp.Compare(a.seq, b.seq) })
	return found
}

// plainPrefix returns an IPv4 network in IPv6 form as such.
func plainPrefix(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// find returns the sessions that match, from the tree in which they are probably fewest.
func (x *index) find(q *Query) (found []*Session) {
	tree, pivot, inRange := x.bySeq, &Session{seq: q.After}, func(*Session) bool { return true }
	switch {
	case !q.User.IsZero():
		tree, pivot.info.User = x.byUser, q.User
		inRange = func(s *Session) bool { return s.info.User == q.User }
	case q.Client.IsValid():
		tree, pivot.info.Client = x.byClient, netip.AddrPortFrom(q.Client.Addr(), 0)
		pivot.seq = 0
		inRange = func(s *Session) bool { return q.Client.Contains(clientAddr(s)) }
	case q.Backend != "":
		tree, pivot.place = x.byPlace, place{q.Backend, q.Address}
		if q.Address == "" {
			pivot.seq = 0 // the sessions of each address begin again
		}
		inRange = func(s *Session) bool {
			return s.place.backend == q.Backend && (q.Address == "" || s.place.address == q.Address)
		}
	}
	tree.AscendGreaterOrEqual(pivot, func(s *Session) bool {
		if !inRange(s) {
			return false
		}
		if q.matches(s) {
			found = append(found, s)
		}
		return true
	})
	return found
}

// matches reports whether s, which the index holds, matches.
func (q *Query) matches(s *Session) bool {
	return s.seq > q.After && (q.User.IsZero() || s.info.User == q.User) &&
		(q.Backend == "" || s.place.backend == q.Backend) && (q.Address == "" || s.place.address == q.Address) &&
		(!q.Client.IsValid() || q.Client.Contains(clientAddr(s)))
}

// Len returns the number of sessions.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sessions.bySeq.Len()
}

// Sessions returns all sessions, in the order of their logins.
func (r *Registry) Sessions() []*Session { return r.Select(Query{}) }

// Seq returns the position of the session in the order of logins at this gateway, from 1.
func (s *Session) Seq() uint64 { return s.seq }

// SetLocation records that the session is at an address of a backend, with a login name
// there.
func (s *Session) SetLocation(backend, address, login string) {
	s.mu.Lock()
	isSame := s.info.Backend == backend && s.info.Address == address
	s.info.Backend, s.info.Address, s.info.Login = backend, address, login
	s.mu.Unlock()
	if isSame {
		return
	}
	r := s.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, isLive := r.sessions.byPlace.Delete(s); isLive {
		s.place = place{backend, address}
		r.sessions.byPlace.ReplaceOrInsert(s)
	}
}
