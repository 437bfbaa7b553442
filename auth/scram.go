package auth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/xdg-go/scram"
	"go.uber.org/zap"

	"imapgate/internal/identity"
)

// maxScram bounds one message of a client, and with it its nonce and all that is
// computed of them. A name is 320 bytes, a binding 64, a proof 32.
const maxScram = 2 << 10

// A challenge comes no sooner than this after the client's first message, and up
// to half as much later: what a user's keys are found in takes microseconds when
// they are remembered and a trip to Redis when they are not, and nobody is
// remembered for as long as a user is. It is longer than such a trip takes, and
// than routing waits for a newer answer than the one it has.
const challengeFloor = 50 * time.Millisecond

// Constant: the library's errors quote channel bindings, and are not kept.
var (
	errScram        = errors.New("message has not the form of the mechanism, or does not fit the connection")
	errScramBinding = errors.New("channel binding is not that of this connection or mechanism")
	errScramProof   = errors.New("proof is wrong, or nobody here knows the user")
)

// scramServer is SCRAM-SHA-256, with and without -PLUS (RFC 5802, RFC 7677). A
// client that does not know the password learns nothing of whether there is such
// a user: it gets a salt, and what it proves is wrong.
type scramServer struct {
	// Set once.
	exchange *Exchange
	plus     bool
	// Owned by the session.
	conversation *scram.ServerConversation // nil before the first message
	proof        proof
	trouble      error // of the source that was asked
	refused      error // ErrDenied, wrapped: no proof will do
}

func (s *scramServer) next(ctx context.Context, response []byte) ([]byte, bool, error) {
	switch {
	case response == nil && s.conversation == nil:
		return []byte{}, false, nil
	case len(response) > maxScram:
		return nil, false, errScram
	case s.conversation == nil:
		began := time.Now()
		challenge, err := s.first(ctx, string(response))
		if over := s.exchange.auth.holdBack(ctx, began); over != nil {
			return nil, false, over
		}
		return challenge, false, err
	}
	return s.final(string(response))
}

// holdBack waits until a challenge may be given that was asked for at began.
func (a *Authenticator) holdBack(ctx context.Context, began time.Time) error {
	wait := time.NewTimer(time.Until(began.Add(a.floor + rand.N(a.floor/2+1))))
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("hold a challenge back: %w: %w", ErrUnavailable, ctx.Err())
	}
}

// first takes who the client is and answers with salt and iterations.
func (s *scramServer) first(ctx context.Context, message string) ([]byte, error) {
	stays, _, _ := strings.Cut(message, ",r=") // without the nonce
	s.exchange.tried.Secret = identity.NewSecret(stays)
	lookup := func(name string) (scram.StoredCredentials, error) { return s.find(ctx, name) }
	server, err := scram.SHA256.NewServer(lookup)
	if err != nil {
		return nil, errScram
	}
	if s.conversation, err = s.bind(server, message); err != nil {
		return nil, err
	}
	challenge, err := s.conversation.Step(message)
	if s.trouble != nil {
		return nil, s.trouble
	}
	if err != nil {
		return nil, errScram
	}
	return []byte(challenge), s.exchange.auth.actsFor(s.proof.user, s.conversation.AuthzID())
}

// bind begins the conversation with the binding that the first message names.
// RFC 5802 §6: "p" belongs to -PLUS alone; "y" is a client that can bind and was
// not told that we can, so where we told it somebody in between has lied.
func (s *scramServer) bind(server *scram.Server, message string) (*scram.ServerConversation, error) {
	e := s.exchange
	flag, _, _ := strings.Cut(message, ",")
	kind, binds := strings.CutPrefix(flag, "p=")
	if binds != s.plus {
		return nil, errScramBinding
	}
	if s.plus {
		b, ok := e.client.binding(kind)
		if !ok {
			return nil, errScramBinding
		}
		return server.NewConversationWithChannelBindingRequired(b), nil
	}
	if _, told := e.auth.offered(scramSHA256Plus, e.client); told {
		b, _ := e.client.anyBinding()
		return server.NewConversationWithChannelBinding(b), nil
	}
	return server.NewConversation(), nil
}

// final takes the client's proof. A wrong one is no error: the exchange is over,
// there is a user whose password was guessed at, and Authenticate says no. Our
// own proof is given with it, for a client whose login is accepted.
func (s *scramServer) final(message string) ([]byte, bool, error) {
	s.exchange.tried.Secret = identity.Secret{}
	answer, err := s.conversation.Step(message)
	if err != nil || !s.conversation.Valid() || s.proof.method == "" {
		answer = ""
		s.proof.err = cmp.Or(s.refused, fmt.Errorf("%w: %w", ErrDenied, errScramProof))
	}
	e := s.exchange
	e.login = Login{User: s.proof.user, Mechanism: e.mechanism, Client: e.client, proof: &s.proof}
	if answer == "" {
		return nil, true, nil
	}
	return []byte(answer), true, nil
}

// find is the library's question for a user's keys. Users without any have mock
// ones, which are made in any case, so that both take as long.
func (s *scramServer) find(ctx context.Context, name string) (scram.StoredCredentials, error) {
	a := s.exchange.auth
	s.exchange.tried.Name = name
	user, err := s.exchange.tried.name(a.names, name, "")
	if err != nil {
		return a.mock(name), nil
	}
	s.proof.user = user
	keys := a.mock(user.String())
	for _, m := range a.methods {
		source, ok := m.method.(storedPasswords)
		if !ok {
			continue
		}
		hash, err := source.password(ctx, user)
		if errors.Is(err, ErrUnknown) {
			continue
		}
		if errors.Is(err, ErrDenied) { // a challenge that never comes would tell that there is such a user
			s.refused = fmt.Errorf("method %s: %w", m.name, err)
			break
		}
		if err != nil {
			s.trouble = fmt.Errorf("method %s: %w", m.name, err)
			return scram.StoredCredentials{}, err
		}
		if hash.kind.scheme.name == scramSHA256 {
			s.proof.method = m.name
			a.compareRounds(user, hash.kind)
			return decodeScram(hash.hash.Reveal())
		}
		break // the first who knows the user decides, and this one cannot be proven so
	}
	return keys, nil
}

// mock is the keys of a user who has none: nobody can prove to know them. Salt
// and iterations look like those of others, and stay the same whenever and at
// whichever gateway somebody asks, as PostgreSQL does it: so the iterations are
// the configuration's, not those of whoever was asked about.
func (a *Authenticator) mock(name string) scram.StoredCredentials {
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(a.derive("salt", name)[:scramSalt]), Iters: a.rounds},
		StoredKey:  a.derive("stored key", name),
		ServerKey:  a.derive("server key", name),
	}
}

// compareRounds tells the operator, once in a while, of a user whose iterations
// are not those of users who do not exist: who asks can tell the two apart.
func (a *Authenticator) compareRounds(user identity.User, k kind) {
	if k.costs[0] == a.rounds {
		return
	}
	a.otherRounds.Do(func() {
		a.log.Warn("stored SCRAM password has other iterations than auth.scram_iterations, which tells that the user exists",
			zap.Stringer("user", user), zap.Int("iterations", k.costs[0]), zap.Int("configured", a.rounds))
	})
}

// derive is HMAC(secret, what NUL name); no name has a NUL.
func (a *Authenticator) derive(what, name string) []byte {
	return mac256([]byte(a.secret.Reveal()), what+"\x00"+name)
}
